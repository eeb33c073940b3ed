"""Checks of tensors that matching, training and feature stores share: their shapes, and that they are finite."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from semcorr.errors import UserError

LOST = 0.01  # of a vector's length, that rounding may take


def require_shape(name: str, tensor: Tensor | np.ndarray, *expected: int | str) -> None:
    """Refuse a tensor of another shape.

    Args:
        name: of the tensor.
        tensor: of any type.
        expected: its shape; a text, such as "N", stands for any size.

    Raises:
        ValueError: the message has the expected and the given shape.
    """
    given = tuple(tensor.shape)
    fits = len(given) == len(expected) and all(
        isinstance(size, str) or size == there for size, there in zip(expected, given, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} is ({', '.join(map(str, given))}), expected ({', '.join(map(str, expected))})")


def limit(precision: str, channels: int) -> float:
    """The largest value that features of so many channels may have.

    Their length, the root of a sum of squares, is computed in float32, which ends at 3e38.
    """
    return min(torch.finfo(getattr(torch, precision)).max, math.sqrt(torch.finfo(torch.float32).max / channels))


def have_length(features: Tensor) -> bool:
    """Whether each vector (..., C) has a finite length: no NaN, no infinity, no squares that overflow."""
    return bool(torch.isfinite(features.float().norm(dim=-1)).all())


def unit(features: Tensor, what: str) -> Tensor:
    """Features (..., C) scaled to length one, in float32; a zero vector stays zero.

    Raises:
        UserError: one has no finite length; `what` names the features.
    """
    if not have_length(features):
        raise UserError(f"{what}: features are not finite, so nothing can be matched with them. Make them again")
    return torch.nn.functional.normalize(features.float(), dim=-1)


def rounded(features: Tensor, precision: str, what: str, why: Callable[[], str]) -> Tensor:
    """Features (..., C) in the precision in which they are kept, float16 or float32.

    Raises:
        UserError: it does not hold them; `what` names them, and `why` says where they overflow and what to do.
    """
    kept = features.to(getattr(torch, precision))
    if not have_length(kept):
        raise UserError(f"{what}: not finite in {precision}: {why()}")
    if kept.dtype != features.dtype:
        before, after = (one.float().norm(dim=-1) for one in (features, kept))
        if not (after - before).abs().le(LOST * before).all():
            raise UserError(f"{what}: too small for {precision}, which would round it to something else. Set float32")
    return kept


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse a network's tensors where one holds NaN or infinity; `where` names their file.

    Raises:
        UserError: the message names the tensors.
    """
    wrong = [name for name, tensor in sorted(tensors.items()) if not torch.isfinite(tensor).all()]
    if wrong:
        shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise UserError(f"{where}: NaN or infinite values in {shown}. The file is damaged, or its training went astray")
