"""Readouts: how a heatmap becomes a point. A module each, of the name that `readout` has in params.yaml.

Each has a function of its own name, which takes heatmaps (N, h, w) and the rule's numbers, and returns the predicted
cells (N, 2), x y.

Modules are imported by name, so that one more of them re-runs nothing that does not use it.
"""

import importlib
from collections.abc import Callable
from functools import partial

from torch import Tensor

from semcorr.params import Rule

ReadOut = Callable[[Tensor], Tensor]


def readout(rule: Rule) -> ReadOut:
    """The function of a rule's readout, with the rule's numbers: heatmaps (N, h, w) -> predicted cells (N, 2), x y."""
    function = getattr(importlib.import_module(f"semcorr.readouts.{rule.readout}"), rule.readout)
    return partial(function, **rule.model_dump(exclude={"readout", "sampling"}))
