"""Readouts turn heatmaps into points; there is one module per value of `readout` in params.yaml.

Its function of the same name takes heatmaps (N, h, w) and the rule's numbers, and returns predicted cells (N, 2), x y.
Modules are imported by name, so that a new one re-runs nothing that does not use it.
"""

import importlib
from collections.abc import Callable
from functools import partial

from torch import Tensor

from semcorr.params import Rule

ReadOut = Callable[[Tensor], Tensor]


def readout(rule: Rule) -> ReadOut:
    """A rule's readout, with its numbers bound: heatmaps (N, h, w) -> predicted cells (N, 2), x y."""
    function = getattr(importlib.import_module(f"semcorr.readouts.{rule.readout}"), rule.readout)
    return partial(function, **rule.model_dump(exclude={"readout", "sampling", "search"}))
