"""All other networks of timm: hierarchical and convolutional ones, and transformers whose size is fixed.

Layers are what timm's `forward_intermediates` counts: blocks of a transformer, stages of a hierarchical network. Where
a network takes images of one size only, they are padded to that square, as SAM's are; elsewhere to whole multiples of
its largest stride, or of the windows in which it computes.
"""

import copy
import inspect
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from semcorr.errors import UserError
from semcorr.networks.backbones import names
from semcorr.networks.backbones.attention import FACETS, has_projections, projected
from semcorr.networks.backbones.base import Backbone, Maps
from semcorr.params import BackboneSpec

SIDES = (256, 384, 512)  # pixels of images that a network of any size is tried with
UNITS = (1, 2, 4, 7, 8, 3, 14)  # multiples of the largest stride: whole windows of attention
LARGEST_UNIT = 512  # pixels


class Staged(Backbone):
    """A network of timm, read through its `forward_intermediates`."""

    def __init__(self, net: Any, name: str, size: int | None):
        """Find out what the network can do.

        Args:
            net: of timm.
            name: of the architecture.
            size: of the images that it was built for, in pixels, if it is not its own.

        Raises:
            UserError: it gives no features that cover the image evenly.
        """
        super().__init__()
        self.net, self.name = net, name
        if not hasattr(net, "forward_intermediates"):
            raise _not_possible(name, f"timm's {type(net).__name__} gives no intermediate features")
        self._takes = inspect.signature(net.forward_intermediates).parameters
        twin = _twin(net)
        side = size or _side(net)
        fixed = bool(net.pretrained_cfg.get("fixed_input_size"))
        for tried in [side] if fixed else [side, *SIDES]:
            shapes = self._shapes(twin, (tried, tried))
            self.strides = _strides(shapes, tried)
            if self.strides:
                break
        else:
            listed = ", ".join(f"{height} x {width}" for _, height, width in self._shapes(twin, (side, side)))
            raise _not_possible(name, f"its layers of {listed} cells do not cover {side} x {side} pixels evenly")
        self.widths = [shape[0] for shape in shapes]
        unit = None if fixed else self._unit(twin)
        self.side, self.multiple = (side, max(self.strides)) if unit is None else (None, unit)
        self._attention = self._find_attention(twin, (side, side))
        self.facets = ("token", *FACETS) if self._attention else ("token",)
        self.norms = self._find_norms()
        self.positional = _knows_positions(net)

    def _shapes(self, twin: Any, canvas: tuple[int, int]) -> list[tuple[int, ...]]:
        """The shapes (C, h, w) of all layers on a canvas.

        Raises:
            UserError: the network cannot compute them.
        """
        try:
            with torch.device("meta"):  # some networks make helpers without saying where
                return [tuple(features.shape[1:]) for features in self._run(twin, torch.zeros(1, 3, *canvas))]
        except Exception as error:  # each network has its own errors
            why = str(error).partition("\n")[0][:120]
            raise _not_possible(self.name, f"it gives no features ({type(error).__name__}: {why})") from None

    def _run(self, net: Any, images: Tensor, layers: Sequence[int] | None = None, norm: bool = False) -> list[Tensor]:
        options: dict[str, Any] = {"intermediates_only": True, "output_fmt": "NCHW", "norm": norm, "stop_early": True}
        options = {key: value for key, value in options.items() if key in self._takes}
        indices = None if layers is None else list(layers)
        return list(net.forward_intermediates(images, indices=indices, **options))

    def _unit(self, twin: Any) -> int | None:
        """The smallest multiple for which canvases of any shape are covered evenly; None if there is none."""
        for factor in UNITS:
            unit = factor * max(self.strides)
            canvas = 2 * unit, 3 * unit
            if unit > LARGEST_UNIT:
                continue
            try:
                shapes = self._shapes(twin, canvas)
            except UserError:
                continue
            even = [(canvas[0] // stride, canvas[1] // stride) for stride in self.strides]
            if [shape[1:] for shape in shapes] == even:
                return unit
        return None

    def _find_attention(self, twin: Any, canvas: tuple[int, int]) -> list[str]:
        """The paths of the attention of each layer, if they take one token per cell, in the order of the cells."""
        if len(set(self.strides)) > 1 or len(set(self.widths)) > 1:
            return []  # the tokens of a hierarchical network are in windows, or have their own order
        blocks = getattr(self.net, "blocks", None)
        if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) != self.depth:
            return []
        paths = [f"blocks.{index}.attn" for index in range(self.depth)]
        cells = (canvas[0] // self.strides[0]) * (canvas[1] // self.strides[0])
        counts: list[tuple[int, ...]] = []
        hooks = []
        for block in twin.blocks:
            attention: Any = getattr(block, "attn", None)
            if not has_projections(attention):
                return []
            hooks.append(attention.register_forward_pre_hook(lambda _, given: counts.append(tuple(given[0].shape))))
        with torch.device("meta"):
            self._run(twin, torch.zeros(2, 3, *canvas))
        for hook in hooks:
            hook.remove()
        prefix = getattr(self.net, "num_prefix_tokens", 0)
        self._prefix = prefix if counts and counts[0][1] == prefix + cells else 0
        wanted = (2, self._prefix + cells, self.widths[0])
        return paths if counts == [wanted] * self.depth else []

    def _find_norms(self) -> tuple[int, ...]:
        """The layers to which `forward_intermediates` applies the final norm: all of a plain one, else the last."""
        norm = getattr(self.net, "norm", None)
        if norm is None or isinstance(norm, nn.Identity) or "norm" not in self._takes:
            return ()
        weight = getattr(norm, "weight", None)
        if weight is None or len(weight) != self.widths[-1]:
            return ()
        flat = len(set(self.strides)) == 1 and len(set(self.widths)) == 1
        return tuple(range(self.depth)) if flat else (self.depth - 1,)

    def maps(self, images: Tensor, spec: BackboneSpec, layers: Sequence[int | str], facets: Sequence[str]) -> Maps:
        numbers = [int(layer) for layer in layers]
        inputs: dict[int, Tensor] = {}
        hooks = []
        if set(facets) - {"token"}:
            for layer in numbers:
                part = self.net.get_submodule(self._attention[layer])
                hooks.append(part.register_forward_pre_hook(_keep(inputs, layer)))
        try:
            outputs = self._run(self.net, images, numbers, spec.norm)
        finally:
            for hook in hooks:
                hook.remove()
        height, width = images.shape[2:]
        for layer, tokens in zip(numbers, outputs, strict=True):
            cells = height // self.strides[layer], width // self.strides[layer]
            for facet in facets:
                if facet == "token":
                    yield layer, facet, tokens
                else:
                    part = self.net.get_submodule(self._attention[layer])
                    values = projected(part, inputs[layer], facet)[:, self._prefix :]
                    yield layer, facet, values.transpose(1, 2).unflatten(2, cells)

    def adopt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return names.timm(tensors, self.net)


def _twin(net: Any) -> Any:
    """A copy on torch's meta device, which runs without computing, so that shapes cost nothing."""
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in net.buffers()}
    memo |= {id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False) for tensor in net.parameters()}
    return copy.deepcopy(net, memo).eval()


def _keep(inputs: dict[int, Tensor], layer: int) -> Any:
    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[layer] = given[0]

    return hook


def _side(net: Any) -> int:
    """The image size that a network was built for."""
    for part in (net, getattr(net, "patch_embed", None)):
        size: Any = getattr(part, "img_size", None)
        if isinstance(size, int):
            return size
        if isinstance(size, tuple | list) and len(size) == 2 and size[0] == size[1]:
            return int(size[0])
    return int(net.pretrained_cfg["input_size"][-1])


def _strides(shapes: list[tuple[int, ...]], side: int) -> list[int]:
    """The strides of layers (C, h, w) on a square; none if a layer does not cover it with whole cells.

    Each stride is a multiple of the one before, else a layer was rounded to whole cells.
    """
    strides = []
    for shape in shapes:
        if len(shape) != 3 or shape[1] != shape[2] or side % shape[1]:
            return []
        strides.append(side // shape[1])
    rising = all(after % before == 0 for before, after in pairwise(strides))
    return strides if rising else []


def _knows_positions(net: Any) -> bool:
    """Whether a network has position embeddings; relative ones count where there is a token to be relative to."""
    names = [name for name, _ in (*net.named_parameters(), *net.named_buffers(), *net.named_modules())]
    relative = [name for name in names if re.search("relative_pos|rel_pos|attention_bias", name)]
    if relative and getattr(net, "num_prefix_tokens", 0) > 0:
        return True
    segments = {segment for name in {*names} - {*relative} for segment in name.split(".")}
    return any(re.match(r"pos|rope|\w*(pos_embed|position|patch_pos|pixel_pos)", segment) for segment in segments)


def _not_possible(model: str, why: str) -> UserError:
    return UserError(f"params.yaml: model: {model!r} is not possible: {why}")
