"""Networks of one's own, by import path: a `Backbone`, or any module that turns images into feature maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semcorr import plugins
from semcorr.errors import UserError, reason
from semcorr.networks.backbones.base import Backbone, Maps
from semcorr.params import BackboneSpec


def network(spec: BackboneSpec) -> Backbone:
    """The network of an entry of params.yaml; `overrides` are its arguments.

    Raises:
        UserError: it cannot be made, or does not say what it is.
    """
    make = plugins.bound(spec.family, plugins.load(spec.family), spec.overrides, 0)
    try:
        net = make()
    except UserError:
        raise
    except Exception as error:  # whatever its code raises
        raise UserError(
            f"params.yaml: {spec.family} cannot be built ({type(error).__name__}: {reason(error)})"
        ) from None
    if isinstance(net, Backbone):
        return net
    if not isinstance(net, nn.Module):
        raise UserError(f"params.yaml: {spec.family} is a {type(net).__name__}; allowed: a torch.nn.Module")
    return Own(net, spec)


class Own(Backbone):
    """A module that is called with images (B, 3, H, W) and returns a map (B, C, h, w), or a list of them by layer."""

    def __init__(self, net: Any, spec: BackboneSpec):
        """Read what the module says of itself.

        Args:
            net: has `stride` (pixels between cells) and `width` (channels), each a number or a list by layer; and if
                they are not the usual ones, `multiple` (of which images' sides are padded to multiples), `mean`, `std`.
            spec: names it.
        """
        super().__init__()
        self.net, self.name = net, spec.model
        self.strides, self.widths = (_numbers(net, name, spec) for name in ("stride", "width"))
        if len(self.strides) != len(self.widths):
            counts = f"{len(self.strides)} strides and {len(self.widths)} widths"
            raise UserError(f"params.yaml: {spec.family} has {counts}; allowed: one of each for every layer")
        self.stride = self.strides[-1]
        self.multiple = getattr(net, "multiple", max(self.strides))
        if not isinstance(self.multiple, int) or self.multiple < 1 or any(self.multiple % one for one in self.strides):
            allowed = f"a multiple of its strides, {self.strides}"
            raise UserError(f"params.yaml: {spec.family}: its multiple is {self.multiple!r}; allowed: {allowed}")
        self.mean, self.std = (_colour(net, name, spec) for name in ("mean", "std"))

    def maps(self, images: Tensor, spec: BackboneSpec, layers: Sequence[int | str], facets: Sequence[str]) -> Maps:
        try:
            found = self.net(images)
            found = [found] if isinstance(found, torch.Tensor) else list(found)
        except torch.OutOfMemoryError:  # `halving` tries again
            raise
        except Exception as error:  # whatever its code raises
            raise UserError(f"{spec.family}: fails ({type(error).__name__}: {reason(error)})") from None
        if len(found) != self.depth:
            raise UserError(f"{spec.family}: returns {len(found)} maps; allowed: {self.depth}, one for each layer")
        for layer in layers:
            stride, width, features = self.strides[int(layer)], self.widths[int(layer)], found[int(layer)]
            expected = (len(images), width, images.shape[2] // stride, images.shape[3] // stride)
            if tuple(features.shape) != expected:
                raise UserError(f"{spec.family}: layer {layer} is {tuple(features.shape)}; allowed: {expected}")
            yield layer, "token", features


def _colour(net: Any, name: str, spec: BackboneSpec) -> tuple[float, float, float]:
    """The mean or deviation of a module's images, of red, green and blue."""
    values = tuple(getattr(net, name, getattr(Backbone, name)))
    right = len(values) == 3 and all(isinstance(one, int | float) for one in values)
    if not right or (name == "std" and min(values) <= 0):
        allowed = "three numbers, for RGB in 0 to 1"
        raise UserError(f"params.yaml: {spec.family}: its {name} is {values}; allowed: {allowed}")
    red, green, blue = map(float, values)
    return red, green, blue


def _numbers(net: Any, name: str, spec: BackboneSpec) -> list[int]:
    """A number of each layer of a module."""
    value = getattr(net, name, None)
    values = list(value) if isinstance(value, list | tuple) else [value]
    numbers = [one for one in values if isinstance(one, int) and one > 0]
    if numbers != values:
        allowed = "a whole number, or one for each layer"
        raise UserError(f"params.yaml: {spec.family}: its {name} is {value!r}; allowed: {allowed}")
    return numbers
