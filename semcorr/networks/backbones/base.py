"""The interface of every network, and of those that can be tuned.

A backbone's entry in params.yaml says which activations are the features (`layer`, `facet`, `norm`, `debias`). Every
`Backbone` reads them, at each of its layers: the blocks of a transformer, or the stages of a hierarchical network, each
with its own stride and width. In a `Blockwise` one, `embed` takes images and numbered blocks follow: `trunk` runs the
blocks below a split and `tail` those from it up to the feature layer, so that a tail can be trained on the cached
output of a frozen trunk. The activations' format is the family's own (tokens with their prefix, or a map).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semcorr.errors import UserError
from semcorr.geometry import Grid, resize
from semcorr.networks.upsampler import Upsampler
from semcorr.params import BackboneSpec
from semcorr.tensors import limit

Maps = Iterator[tuple[int | str, str, Tensor]]  # layer, facet, (B, C, h, w)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels_of(image: PillowImage.Image) -> Tensor:
    """An RGB image as (3, H, W) float32 in [0, 1].

    Raises:
        ValueError: it has another mode; `semcorr.datasets.decode` converts it.
    """
    if image.mode != "RGB":
        raise ValueError(f"the image's mode is {image.mode}, expected RGB; see semcorr.datasets.decode.decode")
    # Not in torch, whose threads would compete with the network's for the cores when images are decoded ahead.
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), np.float32) / np.float32(255))


def standardise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(3, H, W) RGB in [0, 1], minus the mean, divided by the standard deviation."""
    centre, scale = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    return torch.from_numpy((pixels.numpy() - centre) / scale)


class NoPositions(UserError):
    """Features have no positional part that could be removed."""


class Backbone(nn.Module, ABC):
    """A network with dense features.

    Attributes:
        name: of the architecture.
        net: the network itself; its state dict has the names used in weights files.
        strides, widths: pixels between neighbouring cells, and channels, of the output of each layer.
        stride: of the feature layers.
        multiple: a canvas's sides are multiples of it, in pixels.
        side: of the square canvas of a network that takes images of one size only; None elsewhere.
        neck_width: channels after the neck, 0 without one.
        facets: which of "token", "query", "key", "value" can be read.
        norms: the layers to which the final norm can be applied.
        positional: whether the network knows where a cell is (other than by the padding of convolutions).
        mean, std: of the training images, RGB in [0, 1].
        resample: how the network's authors resize images.
    """

    name: str
    net: Any  # a module of the family's library
    strides: list[int]
    widths: list[int]
    stride: int
    multiple: int
    side: int | None = None
    neck_width: int = 0
    facets: tuple[str, ...] = ("token",)
    norms: tuple[int, ...] = ()
    positional: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resample = PillowImage.Resampling.BICUBIC

    def __init__(self) -> None:
        super().__init__()
        self._bases: dict[tuple, Tensor] = {}
        self.upsampler: Upsampler | None = None

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU, if it has none."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.widths)

    def canvas(self, resized: tuple[int, int]) -> tuple[int, int]:
        """The size (height, width) that an image is padded to: the network's square, or whole multiples."""
        if self.side is not None:
            if max(resized) > self.side:
                where = f"the canvas of {self.name}, {self.side} pixels"
                raise UserError(f"params.yaml: image_size: {max(resized)} exceeds {where}")
            return self.side, self.side
        height, width = (-(-side // self.multiple) * self.multiple for side in resized)
        return height, width

    def preprocess(self, image: PillowImage.Image, long_side: int) -> tuple[Tensor, Grid]:
        """Resize, standardise and pad an image.

        Args:
            image: RGB, of any size.
            long_side: of the resized image, in pixels.

        Returns:
            (3, H, W) float32, padded with zeros (the mean colour) at the bottom and right; and its grid.
        """
        pixels = standardise(pixels_of(resize(image, long_side, self.resample)), self.mean, self.std)
        resized = pixels.shape[1], pixels.shape[2]
        return self.pad(pixels), self.grid((image.height, image.width), resized)

    def grid(self, size: tuple[int, int], resized: tuple[int, int]) -> Grid:
        """How the features lie on an image (height, width) that is resized to another size."""
        upsample = 1 if self.upsampler is None else self.upsampler.upsample
        return Grid(image_size=size, resized_size=resized, stride=self.stride, upsample=upsample)

    def pad(self, pixels: Tensor) -> Tensor:
        """(..., H, W) pixels padded with zeros at the bottom and right to the canvas."""
        height, width = self.canvas((pixels.shape[-2], pixels.shape[-1]))
        return nn.functional.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))

    def mirrored(self, pixels: Tensor, grid: Grid) -> Tensor:
        """(..., H, W) pixels of the image mirrored left to right, with the padding where it was."""
        width = grid.resized_size[1]
        return torch.cat([pixels[..., :width].flip(-1), pixels[..., width:]], dim=-1)

    @abstractmethod
    def maps(self, images: Tensor, spec: BackboneSpec, layers: Sequence[int | str], facets: Sequence[str]) -> Maps:
        """Activations of (B, 3, H, W) images, in one pass.

        Args:
            images: standardised and padded.
            spec: `norm` says whether the final norm is applied to tokens.
            layers: in ascending order.
            facets: of each layer.

        Yields:
            Layer, facet, and a map (B, C, h, w), padded cells included.
        """

    def adopt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of another checkpoint format to this network's names; others are returned as they are.

        Only tensors known to be extra in that format are dropped; the caller refuses any other mismatch.
        """
        return tensors

    def cells(self, images: Tensor) -> tuple[int, int]:
        """Padded grid (h, w) of a batch of images."""
        return images.shape[-2] // self.stride, images.shape[-1] // self.stride

    def stop(self, spec: BackboneSpec) -> int:
        """The number of layers that the features need.

        Raises:
            UserError: the network has no such layer.
        """
        stops = [self.depth if layer == "neck" else layer + 1 for layer in spec.layers]
        if max(stops) > self.depth:
            last, allowed = max(stops) - 1, f"blocks 0 to {self.depth - 1}"
            raise UserError(f"params.yaml: layer: {last} does not exist; the network has {allowed}")
        return max(stops)

    def channels(self, spec: BackboneSpec) -> int:
        """C of the features of one view: summed over the layers, or of the upsampler.

        Raises:
            UserError: the upsampler was made for another number.
        """
        width = sum(self.neck_width if layer == "neck" else self.widths[layer] for layer in spec.layers)
        if self.upsampler is None:
            return width
        if self.upsampler.width != width:
            raise UserError(
                f"{self.name}: the tuning's head was trained on {self.upsampler.width} channels, layer {spec.layer} "
                f"has {width}. Set the layer that it was trained for"
            )
        return self.upsampler.channels

    def at(self, spec: BackboneSpec) -> Self:
        """Itself, with the stride of the feature layers.

        Raises:
            UserError: the network has no such layer, or the layers' strides differ.
        """
        self.stop(spec)
        strides = [self.strides[-1 if layer == "neck" else layer] for layer in spec.layers]
        if len(set(strides)) > 1:
            listed = " and ".join(map(str, strides))
            raise UserError(f"params.yaml: layer: {spec.layers} have strides of {listed} pixels; allowed: one stride")
        self.stride = strides[0]
        return self

    def features(self, images: Tensor, spec: BackboneSpec) -> Tensor:
        """Features (B, C, h, w) of (B, 3, H, W) images; `spec.debias` removes what a blank image shows too."""
        maps = self.maps(images, spec, spec.layers, [spec.facet])
        features = self.finished(_joined([features for _, _, features in maps]))
        return features if spec.debias is None else self.debiased(features, images, spec)

    def finished(self, features: Tensor) -> Tensor:
        """The features (B, C, h, w) from those of the layers: on a finer grid, if there is a head."""
        return features if self.upsampler is None else self.upsampler(features)

    def debiased(self, features: Tensor, images: Tensor, spec: BackboneSpec) -> Tensor:
        """Features (B, C, h, w) of images without their positional part."""
        basis, features = self.positional_basis((images.shape[2], images.shape[3]), spec), features.float()
        with torch.autocast(features.device.type, enabled=False):
            return features - torch.einsum("kc,kd,bdhw->bchw", basis, basis, features)

    def positional_basis(self, canvas: tuple[int, int], spec: BackboneSpec) -> Tensor:
        """The orthonormal directions (K, C) in which the features of a blank image of this size vary most.

        The cells of a blank image, all mean colour, differ only by their positions.

        Source: the debiasing of INSID3, Cuttano et al., CVPR 2026, arXiv 2603.28480.
        """
        assert spec.debias is not None, "asked for where spec.debias says how many"
        key = (canvas, *spec.layers, spec.facet, spec.norm, spec.debias.components)
        if key not in self._bases:
            blank = torch.zeros(1, 3, *canvas, device=self.device)
            with torch.autocast(blank.device.type, enabled=False):  # once per size, so the cost does not matter
                [cells] = self.features(blank, spec.model_copy(update={"debias": None})).flatten(2).mT.float()
            if len(cells) <= (count := spec.debias.components):
                raise UserError(f"params.yaml: debias.components: {count} needs an image of more than {count} cells")
            _, sizes, directions = torch.linalg.svd(cells - cells.mean(dim=0), full_matrices=False)
            if sizes[0] < 1e-4 * torch.linalg.norm(cells):
                raise NoPositions(
                    f"params.yaml: debias: this layer and facet of {self.name} see no positions: a blank image is the "
                    f"same everywhere; allowed: null"
                )
            self._bases[key] = directions[: spec.debias.components]
        return self._bases[key]

    @torch.no_grad()
    def overflow_in(self, images: Tensor, stop: int, *, key: str, precision: str) -> str:
        """Explain where the values of one image (1, 3, H, W) overflow a precision, and what to do.

        Args:
            images: the image.
            stop: the layer after the last one.
            key: sets the precision in params.yaml.
            precision: "float16" or "float32".
        """
        plain = BackboneSpec.model_construct(norm=False)
        with torch.autocast(images.device.type, enabled=False):
            for layer, _, features in self.maps(images.float(), plain, range(stop), ["token"]):
                if why := too_large(features, f"layer {layer}", key, precision):
                    return why
        return _only_rounding(f"layer {stop - 1}", key)


def _joined(maps: list[Tensor]) -> Tensor:
    """The features (B, C, h, w) of several layers, each of length one, so that none outweighs the others."""
    if len(maps) == 1:
        return maps[0]
    with torch.autocast(maps[0].device.type, enabled=False):
        return torch.cat([nn.functional.normalize(features.float(), dim=1) for features in maps], dim=1)


def too_large(features: Tensor, where: str, key: str, precision: str) -> str | None:
    """Why features (B, C, h, w) cannot be stored in a precision, set by a key of params.yaml; None if they can."""
    remedy = "its tensors are damaged, or their training diverged"
    largest, bound = features.abs().max().item(), limit(precision, features.shape[1])
    if not math.isfinite(largest):
        return f"the output of {where} is {largest}: {remedy}"
    if largest > bound:
        remedy = f"Set {key}: float32" if precision == "float16" else remedy
        return f"the output of {where} reaches {largest:.3g}, more than {bound:.3g}. {remedy}"
    return None


def _only_rounding(where: str, key: str) -> str:
    return (
        f"no output is too large in float32, but the features from {where} are. "
        f"Set compute: float32, and {key}: float32 if that does not help"
    )


class Blockwise(Backbone):
    """A network whose blocks are run one by one, so that its last ones can be tuned."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing = False  # recompute each block's activations in the backward pass instead of storing them

    def step(self, block: nn.Module, activations: Tensor, **extra: Tensor) -> Tensor:
        """One block's output."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(partial(block, **extra), activations, use_reentrant=False)
        return block(activations, **extra)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """The input of block 0 for (B, 3, H, W) images."""

    @abstractmethod
    def run(self, activations: Tensor, cells: tuple[int, int], first: int, stop: int) -> Tensor:
        """Activations after blocks first to stop - 1; `cells` is the padded grid (h, w)."""

    @abstractmethod
    def read(self, activations: Tensor, cells: tuple[int, int], *, norm: bool, neck: bool) -> Tensor:
        """Activations as a feature map (B, C, h, w), padded cells included."""

    @abstractmethod
    def facet(self, activations: Tensor, cells: tuple[int, int], block: int, facet: str) -> Tensor:
        """Queries, keys or values (B, C, h, w) of a block's attention, heads concatenated, before any rotation."""

    @abstractmethod
    def activation_shape(self, cells: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one image's activations between blocks, on a padded grid (h, w)."""

    @abstractmethod
    def tuned_modules(self, blocks: int, spec: BackboneSpec) -> list[nn.Module]:
        """The modules to train: the last `blocks` blocks up to the features, and any norm or neck after them."""

    def trunk(self, images: Tensor, stop: int) -> Tensor:
        """The input of block `stop` for (B, 3, H, W) images."""
        return self.run(self.embed(images), self.cells(images), 0, stop)

    def tail(self, activations: Tensor, cells: tuple[int, int], first: int, spec: BackboneSpec) -> Tensor:
        """Features (B, C, h, w) from the input of block `first`, before a head."""
        maps = self._read_on(activations, cells, first, spec, spec.layers, [spec.facet])
        return _joined([features for _, _, features in maps])

    def maps(self, images: Tensor, spec: BackboneSpec, layers: Sequence[int | str], facets: Sequence[str]) -> Maps:
        """See `Backbone.maps`."""
        return self._read_on(self.embed(images), self.cells(images), 0, spec, layers, facets)

    def _read_on(
        self,
        activations: Tensor,
        cells: tuple[int, int],
        at: int,
        spec: BackboneSpec,
        layers: Sequence[int | str],
        facets: Sequence[str],
    ) -> Maps:
        inner = [facet for facet in facets if facet != "token"]
        for layer in layers:
            block = self.depth if layer == "neck" else int(layer)
            if inner and layer != "neck":
                activations, at = self.run(activations, cells, at, block), block
                yield from ((layer, facet, self.facet(activations, cells, block, facet)) for facet in inner)
            if "token" in facets:
                stop = block if layer == "neck" else block + 1
                activations, at = self.run(activations, cells, at, stop), stop
                yield layer, "token", self.read(activations, cells, norm=spec.norm, neck=layer == "neck")

    @torch.no_grad()
    def overflow(
        self, activations: Tensor, cells: tuple[int, int], first: int, stop: int, *, key: str, precision: str
    ) -> str:
        """The same as `overflow_in`, from one image's input of block `first` on; `cells` is the padded grid (h, w)."""
        with torch.autocast(activations.device.type, enabled=False):
            activations = activations.float()
            if not torch.isfinite(activations).all():
                return f"the input of block {first} is not finite; check the image and its cached activations"
            for block in range(first, stop):
                activations = self.run(activations, cells, block, block + 1)
                patches = self.read(activations, cells, norm=False, neck=False)
                if why := too_large(patches, f"block {block}", key, precision):
                    return why
        return _only_rounding(f"block {stop - 1}", key)

    def overflow_in(self, images: Tensor, stop: int, *, key: str, precision: str) -> str:
        """See `Backbone.overflow_in`; block by block."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            activations = self.embed(images)
        return self.overflow(activations, self.cells(images), 0, stop, key=key, precision=precision)
