"""Matching a pair of images in memory."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from semcorr import params
from semcorr.api.backbone import UnifiedBackbone
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.matching import match_points
from semcorr.readouts import readout
from semcorr.tensors import unit

T = TypeVar("T")


class Recent(Generic[T]):
    """A cache of the `size` values used last."""

    def __init__(self, size: int):
        self._size, self._kept = size, OrderedDict[Hashable, T]()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, computed if it is not cached."""
        if key not in self._kept:
            self._kept[key] = compute()
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return self._kept[key]


class CorrespondenceMatcher:
    """Finds source keypoints in a target image.

    Args:
        backbone: the network that computes the features.
        use_soft_argmax: window soft-argmax instead of argmax.
        window: side length of its window in cells, odd.
        temperature: divides the similarity in its softmax.
        sampling: of source descriptors, "bilinear" or "nearest".
        cache: number of images whose features are kept, so that an image in many pairs is encoded once.
    """

    def __init__(
        self,
        backbone: UnifiedBackbone,
        use_soft_argmax: bool = False,
        *,
        window: int = 5,
        temperature: float = 0.04,
        sampling: str = "bilinear",
        cache: int = 64,
    ):
        self.backbone = backbone
        values: dict[str, Any] = {"readout": "argmax", "sampling": sampling}
        if use_soft_argmax:
            values = {"readout": "softargmax", "sampling": sampling, "window": window, "temperature": temperature}
        try:
            self.rule = TypeAdapter(params.Rule).validate_python(values)
        except ValidationError as error:
            raise UserError(f"CorrespondenceMatcher: {params.explain(error)}") from None
        self._seen: Recent[Tensor] = Recent(max(2, cache))

    @torch.inference_mode()
    def match(self, src_img: Tensor | np.ndarray, tgt_img: Tensor | np.ndarray, src_kps: Tensor | np.ndarray) -> Tensor:
        """Predict the target keypoints.

        Args:
            src_img: (3, H, W) or (1, 3, H, W), standardised RGB, of any size and float type; a tensor or an array.
            tgt_img: the same.
            src_kps: (N, 2), x y in pixels of `src_img`.

        Returns:
            (N, 2) float32 on the CPU, x y in pixels of `tgt_img`.

        Raises:
            ValueError: a keypoint lies outside the source image, or an argument has another shape or type.
        """
        points = numbers(src_kps)
        src_img, tgt_img = (_one_image(name, image) for name, image in (("src_img", src_img), ("tgt_img", tgt_img)))
        height, width = src_img.shape[-2:]
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"src_kps is {points.shape}, expected (N, 2)")
        slack = 1 + 0.01 * max(height, width)  # annotations count from 0 or from 1, in the image before resizing
        if not ((points >= -slack) & (points <= (width + slack, height + slack))).all():
            raise ValueError(f"a keypoint lies outside the source image of {width} x {height} pixels")
        (source, source_grid), (target, target_grid) = self._features(src_img), self._features(tgt_img)
        maps = (unit(source, "src_img"), source_grid), (unit(target, "tgt_img"), target_grid)
        predicted, _ = match_points(points, *maps, self.rule.sampling, readout(self.rule))
        return torch.from_numpy(predicted).float()

    def _features(self, image: Tensor) -> tuple[Tensor, Grid]:
        """The feature map (h, w, C) of an image (1, 3, H, W), cached by its pixels."""
        key = hashlib.sha256(image.cpu().contiguous().numpy()).digest() + bytes(str(image.shape), "ascii")
        if isinstance(self.backbone, nn.Module):  # its tensors may have changed since
            versions = sum(tensor._version for tensor in self.backbone.parameters() if not tensor.is_inference())
            key += f"{versions}".encode()
        # The backbone has already rounded to this precision, so nothing is lost.
        features = self._seen.get(key, lambda: self.backbone.extract_features(image)[0].to(self.backbone.precision))
        return features.float(), self.backbone.grid((image.shape[2], image.shape[3]))


def numbers(points: Tensor | np.ndarray) -> np.ndarray:
    """Points of any type as a float64 array."""
    if isinstance(points, Tensor):
        return points.detach().cpu().double().numpy()
    if isinstance(points, np.ma.MaskedArray) or np.iscomplexobj(points):
        raise ValueError("points are masked or complex; leave out missing ones")
    return np.asarray(points, float)


def _one_image(name: str, image: Tensor | np.ndarray) -> Tensor:
    """One image (1, 3, H, W) in float32."""
    image = torch.as_tensor(image).detach()
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"{name} is {tuple(image.shape)}, expected (3, H, W) or (1, 3, H, W)")
    if not image.is_floating_point():
        raise ValueError(f"{name} is {image.dtype}, expected standardised RGB in floats")
    return image.float()
