"""The contract of every network: an image goes in through `embed`, through numbered blocks, and out as features.

Activations between blocks are what the family works on (tokens with their prefix, or a map); whoever caches them
need not know. `trunk` runs the blocks below a split, `tail` those from it up to the feature layer, so that a frozen
trunk can be computed once and a tail be trained on what it gave.
"""

from typing import Literal

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor, nn

from semcorr.errors import UserError
from semcorr.geometry import Grid, resized_size

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resize(image: PillowImage.Image, long_side: int, resample: PillowImage.Resampling) -> Tensor:
    """An image of any size and mode as (3, H, W) float32 RGB in [0, 1], its longer side `long_side` pixels."""
    size = resized_size((image.height, image.width), long_side)
    small = image.convert("RGB").resize(size[::-1], resample)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def standardise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(3, H, W) RGB in [0, 1], less the mean, over the standard deviation."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class Backbone(nn.Module):
    """A network with dense features.

    Attributes:
        net: the network itself; its state dict has the names of the weights files.
        stride: pixels between neighbouring cells.
        depth: number of blocks.
        mean, std: of the training images, RGB in [0, 1].
        resample: how the network's authors resize images.
    """

    net: nn.Module
    stride: int
    depth: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resample = PillowImage.Resampling.BICUBIC

    def canvas(self, resized: tuple[int, int]) -> tuple[int, int]:
        """Size (height, width) that an image is padded to: whole cells."""
        height, width = (-(-side // self.stride) * self.stride for side in resized)
        return height, width

    def preprocess(self, image: PillowImage.Image, long_side: int) -> tuple[Tensor, Grid]:
        """Resize, normalise and pad an image.

        Args:
            image: of any size and mode.
            long_side: pixels of its longer side as the network sees it.

        Returns:
            (3, H, W) float32, padded with zeros (the mean colour) at the bottom and right; and its grid.
        """
        pixels = standardise(resize(image, long_side, self.resample), self.mean, self.std)
        resized = pixels.shape[1], pixels.shape[2]
        grid = Grid(image_size=(image.height, image.width), resized_size=resized, stride=self.stride)
        return self.pad(pixels), grid

    def pad(self, pixels: Tensor) -> Tensor:
        """(..., H, W) pixels padded with zeros at the bottom and right to the canvas."""
        height, width = self.canvas((pixels.shape[-2], pixels.shape[-1]))
        return nn.functional.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to the activations that enter block 0."""
        raise NotImplementedError

    def run(self, activations: Tensor, cells: tuple[int, int], first: int, stop: int) -> Tensor:
        """Activations after blocks first to stop - 1; `cells` is the padded grid (h, w)."""
        raise NotImplementedError

    def read(self, activations: Tensor, cells: tuple[int, int], *, norm: bool, neck: bool) -> Tensor:
        """Activations as a feature map (B, C, h, w), padded cells included."""
        raise NotImplementedError

    def adopt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of an official checkpoint under this network's names; others are returned as they are.

        What the official file is known to hold beside the network is left out. Nothing else is: the caller refuses
        what then is missing or left over.
        """
        return tensors

    def cells(self, images: Tensor) -> tuple[int, int]:
        """Padded grid (h, w) of a batch of images."""
        return images.shape[-2] // self.stride, images.shape[-1] // self.stride

    def stop(self, layer: int | Literal["neck"]) -> int:
        """How many blocks lie at or below a feature layer.

        Raises:
            UserError: the network has no such block.
        """
        if layer == "neck":
            return self.depth
        if layer >= self.depth:
            raise UserError(f"params.yaml: layer: {layer} does not exist; the network has blocks 0 to {self.depth - 1}")
        return layer + 1

    def trunk(self, images: Tensor, stop: int) -> Tensor:
        """(B, 3, H, W) images to the activations that enter block `stop`."""
        return self.run(self.embed(images), self.cells(images), 0, stop)

    def tail(
        self,
        activations: Tensor,
        cells: tuple[int, int],
        first: int,
        layer: int | Literal["neck"],
        norm: bool,
    ) -> Tensor:
        """Activations that enter block `first` to features (B, C, h, w) of `layer`."""
        activations = self.run(activations, cells, first, self.stop(layer))
        return self.read(activations, cells, norm=norm, neck=layer == "neck")

    def features(self, images: Tensor, layer: int | Literal["neck"], norm: bool) -> Tensor:
        """(B, 3, H, W) images to features (B, C, h, w) of `layer`."""
        return self.tail(self.embed(images), self.cells(images), 0, layer, norm)

    def tuned_modules(self, blocks: int, layer: int | Literal["neck"], norm: bool) -> list[nn.Module]:
        """What is trained: the last `blocks` blocks up to `layer`, and what stands between them and the features."""
        raise NotImplementedError
