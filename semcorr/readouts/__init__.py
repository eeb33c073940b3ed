"""Readouts turn heatmaps into points; there is one module per value of `readout` in params.yaml.

Its function of the same name takes heatmaps (N, h, w) and the rule's numbers, and returns predicted cells (N, 2), x y.
Modules are imported by name, so that a new one re-runs nothing that does not use it. `readout: package.module:name` is
one of one's own.
"""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from semcorr import plugins
from semcorr.errors import UserError
from semcorr.params import Rule

ReadOut = Callable[[Tensor], Tensor]


def readout(rule: Rule) -> ReadOut:
    """A rule's readout, with its numbers bound: heatmaps (N, h, w) -> predicted cells (N, 2), x y.

    Raises:
        UserError: it is one's own, and there is none, or it does not take these numbers.
    """
    numbers = rule.model_dump(exclude={"readout", "sampling", "search"})
    if plugins.is_own(rule.readout):
        return _checked(rule.readout, plugins.bound(rule.readout, plugins.load(rule.readout), numbers, 1))
    function = getattr(importlib.import_module(f"semcorr.readouts.{rule.readout}"), rule.readout)
    return partial(function, **numbers)


def _checked(name: str, function: ReadOut) -> ReadOut:
    """One's own readout, whose answers must be numbers, two for each heatmap."""

    def read(maps: Tensor) -> Tensor:
        cells = function(maps)
        given = tuple(getattr(cells, "shape", ()))
        if given != (len(maps), 2):
            raise UserError(f"{name}: returns {given or type(cells).__name__}; allowed: ({len(maps)}, 2), x y in cells")
        if not torch.isfinite(cells).all():
            raise UserError(f"{name}: returns cells that are not finite")
        return cells

    return read
