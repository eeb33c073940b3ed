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
from semcorr.errors import UserError, reason
from semcorr.params import Rule, is_import_path

ReadOut = Callable[[Tensor], Tensor]


def readout(rule: Rule) -> ReadOut:
    """A rule's readout, with its numbers bound: heatmaps (N, h, w) -> predicted cells (N, 2), x y.

    Raises:
        UserError: it is one's own, and there is none, or it does not take these numbers.
    """
    numbers = rule.model_dump(exclude={"readout", "sampling", "search"})
    if is_import_path(rule.readout):
        return _checked(rule.readout, plugins.bound(rule.readout, plugins.load(rule.readout), numbers, 1))
    function = getattr(importlib.import_module(f"semcorr.readouts.{rule.readout}"), rule.readout)
    return partial(function, **numbers)


def _checked(name: str, function: ReadOut) -> ReadOut:
    """One's own readout, whose answers must be numbers, two for each heatmap."""

    def read(maps: Tensor) -> Tensor:
        try:
            cells = function(maps)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever its code raises
            raise UserError(f"{name}: fails ({type(error).__name__}: {reason(error)})") from None
        given = tuple(cells.shape) if isinstance(cells, Tensor) else type(cells).__name__
        if given != (len(maps), 2):
            raise UserError(f"{name}: returns {given}; allowed: a tensor ({len(maps)}, 2), x y in cells")
        if not torch.isfinite(cells).all():
            raise UserError(f"{name}: returns cells that are not finite")
        if not _is_searched(maps, cells).all():
            raise UserError(f"{name}: answers cells that are not searched, whose similarity is minus infinity")
        return cells

    return read


def _is_searched(maps: Tensor, cells: Tensor) -> Tensor:
    """Whether each answer (N,) lies on a cell that is searched or beside one, since it may lie between cells."""
    height, width = maps.shape[1:]
    near = torch.nn.functional.max_pool2d(maps, 3, stride=1, padding=1)
    x, y = (cells[:, axis].round().long().clamp(0, side - 1) for axis, side in ((0, width), (1, height)))
    return ~torch.isneginf(near[torch.arange(len(maps), device=maps.device), y, x])
