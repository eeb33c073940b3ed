"""Readouts: how a heatmap is read. A module each, of the name that `readout` has in params.yaml.

Each has a function

    read_out(maps, rule)    predicted cells (N, 2), x y, of heatmaps (N, h, w), under a rule of params.yaml

Modules are imported by name, so that one more of them re-runs nothing that does not use it.
"""

import importlib
from collections.abc import Callable
from functools import partial

from torch import Tensor

from semcorr.params import Rule

ReadOut = Callable[[Tensor], Tensor]


def readout(rule: Rule) -> ReadOut:
    """What predicts cells (N, 2), x y, of heatmaps (N, h, w) under a rule of params.yaml."""
    return partial(importlib.import_module(f"semcorr.readouts.{rule.readout}").read_out, rule=rule)
