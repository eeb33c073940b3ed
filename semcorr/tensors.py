"""Checks of tensors, and places between the cells of a feature map; shared by matching, training and feature stores."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from semcorr.errors import UserError

LOST = 0.01  # fraction of a vector's length that rounding may change


def require_shape(name: str, tensor: Tensor | np.ndarray, *expected: int | str) -> None:
    """Check a tensor's shape.

    Args:
        name: the tensor's name in the error.
        tensor: of any type.
        expected: its shape; a string such as "N" stands for any size.

    Raises:
        ValueError: the tensor has another shape.
    """
    given = tuple(tensor.shape)
    pairs = zip(expected, given, strict=False)
    if len(given) != len(expected) or not all(isinstance(wanted, str) or wanted == size for wanted, size in pairs):
        raise ValueError(f"{name} is ({', '.join(map(str, given))}), expected ({', '.join(map(str, expected))})")


def normalise(features: Tensor) -> Tensor:
    """Scale vectors (..., C) to length one; a zero vector stays zero."""
    return torch.nn.functional.normalize(features, dim=-1)


def onto(device: torch.device, array: np.ndarray) -> Tensor:
    """An array as a tensor on a device; nobody waits until a GPU has it."""
    return pinned(torch.from_numpy(array), device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor that a GPU can fetch by itself, if that is the device and there is one."""
    return tensor.pin_memory() if device.type == "cuda" and torch.cuda.is_available() else tensor


def sample(features: Tensor, cells: Tensor, sampling: str) -> Tensor:
    """Descriptors at points of a feature map.

    Args:
        features: (h, w, C) of unit length.
        cells: (N, 2) x y; points beyond the outermost cell centres take the border's values.
        sampling: "bilinear" or "nearest".

    Returns:
        (N, C) of unit length.
    """
    require_shape("features", features, "h", "w", "C")
    require_shape("cells", cells, "N", 2)
    height, width, _ = features.shape
    grid = 2 * (cells + 0.5) / onto(cells.device, np.array([width, height])).to(cells.dtype) - 1
    sampled = torch.nn.functional.grid_sample(
        features.permute(2, 0, 1)[None],
        grid[None, None].to(features),
        mode=sampling,
        padding_mode="border",
        align_corners=False,
    )
    return normalise(sampled[0, :, 0].T)


def limit(precision: str, channels: int) -> float:
    """The largest value allowed in features with this many channels.

    Their length, the root of a sum of squares, is computed in float32, whose maximum is 3e38.
    """
    return min(torch.finfo(getattr(torch, precision)).max, math.sqrt(torch.finfo(torch.float32).max / channels))


def have_length(features: Tensor) -> bool:
    """Whether each vector (..., C) has a finite length: no NaN, no infinity, no squares that overflow."""
    return bool(torch.isfinite(features.float().norm(dim=-1)).all())


def unit(features: Tensor, what: str) -> Tensor:
    """Features (..., C) scaled to length one, in float32; a zero vector stays zero.

    Raises:
        UserError: a vector's length is not finite; `what` names the features.
    """
    if not have_length(features):
        raise UserError(f"{what}: features are not finite, so nothing can be matched with them. Compute them again")
    return torch.nn.functional.normalize(features.float(), dim=-1)


def rounded(features: Tensor, precision: str, what: str, why: Callable[[], str]) -> Tensor:
    """Convert features (..., C) to the precision they are stored in, float16 or float32.

    Raises:
        UserError: they do not fit; `what` names them, and `why` explains where they overflow and what to do.
    """
    kept = features.to(getattr(torch, precision))
    if not have_length(kept):
        raise UserError(f"{what}: not finite in {precision}: {why()}")
    if kept.dtype != features.dtype:
        before, after = (vectors.float().norm(dim=-1) for vectors in (features, kept))
        if not (after - before).abs().le(LOST * before).all():
            raise UserError(f"{what}: too small for {precision}, whose rounding would change them. Set float32")
    return kept


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that a network's tensors are finite.

    Raises:
        UserError: some hold NaN or infinity; the message names them and `where`, their file.
    """
    wrong = [name for name, tensor in sorted(tensors.items()) if not torch.isfinite(tensor).all()]
    if wrong:
        shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise UserError(f"{where}: NaN or infinite values in {shown}. The file is damaged, or its training diverged")
