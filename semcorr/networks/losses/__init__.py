"""Fine-tuning objectives: pure tensors, one value per keypoint. A module each, of the name it has in params.yaml.

Each has a function

    loss(maps, descriptors, target, cells, setting, generator)    (N,), of a setting of params.yaml

where maps are the similarity (N, h, w) of N source descriptors (N, C) with every valid cell of a target's map
(h, w, C), both of unit length; cells are the true positions (N, 2), x y in cells, not rounded; and the generator, on
the CPU, is for what is drawn.

Modules are imported by name, so that one more of them re-runs nothing that does not use it.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from semcorr.params import Loss


def objective(setting: Loss) -> Callable[..., Tensor]:
    """The function `loss` of a setting of params.yaml."""
    return importlib.import_module(f"semcorr.networks.losses.{setting.name}").loss


def further() -> Callable[..., Tensor]:
    """What `end_point` of params.yaml adds to an objective."""
    return importlib.import_module("semcorr.networks.losses.end_point").end_point


def axes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The cells' x (w,) and y (h,)."""
    height, width = maps.shape[1:]
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    return x, torch.arange(height, device=maps.device, dtype=maps.dtype)
