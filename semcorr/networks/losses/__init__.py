"""Losses for fine-tuning: tensors and numbers in, a value per keypoint out; one module per name in params.yaml.

Its function of the same name is called with keywords and takes those it needs:

    maps           similarity (N, h, w) of N source descriptors with every valid cell of one target
    descriptors    the source descriptors (N, C), of length one
    target         the target's feature map (h, w, C), of length one
    cells          true positions (N, 2), x y in cells, not rounded
    generator      on the CPU, for random draws
    ...            the loss's numbers in params.yaml

Modules are imported by name, so that a new one re-runs nothing that does not use it.
"""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from semcorr.params import EndPoint, Loss, Schedule
from semcorr.tensors import require_shape


def objective(
    loss: Loss, end_point: EndPoint | None, progress: float = 0.0, upsample: int = 1
) -> Callable[..., Tensor]:
    """The loss of params.yaml, with its numbers bound, plus the weighted `end_point`.

    Args:
        loss: the loss.
        end_point: the second term; None for none.
        progress: of the training, 0 to 1, for numbers that change over it.
        upsample: cells of the maps in each of the network's, along each axis; `sigma_cells` counts the network's.
    """
    numbers = {name: getattr(loss, name) for name in type(loss).model_fields if name != "name"}
    numbers = {name: value.at(progress) if isinstance(value, Schedule) else value for name, value in numbers.items()}
    if "sigma_cells" in numbers:
        numbers["sigma_cells"] *= upsample
    main = _function(loss.name, **numbers)
    weight = 0.0 if end_point is None else end_point.weight
    extra = None if end_point is None else _function("end_point", temperature=end_point.temperature)

    def total(
        *, maps: Tensor, descriptors: Tensor, target: Tensor, cells: Tensor, generator: torch.Generator
    ) -> Tensor:
        height, width, channels = target.shape
        require_shape("maps", maps, len(cells), height, width)
        require_shape("descriptors", descriptors, len(cells), channels)
        require_shape("cells", cells, "N", 2)
        given = {"maps": maps, "descriptors": descriptors, "target": target, "cells": cells, "generator": generator}
        value = main(**given)
        return value if extra is None else value + weight * extra(**given)

    return total


def _function(name: str, **numbers: float) -> Callable[..., Tensor]:
    return partial(getattr(importlib.import_module(f"semcorr.networks.losses.{name}"), name), **numbers)


def axes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The cells' x (w,) and y (h,)."""
    height, width = maps.shape[1:]
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    return x, torch.arange(height, device=maps.device, dtype=maps.dtype)
