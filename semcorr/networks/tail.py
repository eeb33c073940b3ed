"""The upper part of a network, fed with the trunk's activations out of their store."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from semcorr.artifacts.store import Store
from semcorr.geometry import Grid
from semcorr.networks.backbones import build, load
from semcorr.params import BackboneSpec


class Tail:
    """The blocks from the trunk's end up to the feature layer.

    Args:
        spec: of the backbone.
        blocks: how many blocks the trunk leaves out.
        device: to compute on.
        tensors: safetensors files of the network, later ones over earlier ones.
    """

    def __init__(self, spec: BackboneSpec, blocks: int, device: torch.device, *tensors: Path):
        self.spec = spec
        self.device = device
        self.network = load(build(spec), *tensors).to(device)
        self.first = self.network.stop(spec) - blocks

    def forward(self, trunk: Store, ids: list[str]) -> dict[str, tuple[Tensor, Grid]]:
        """Feature maps (h, w, C), valid cells only, and grids of some images; one pass per padded shape."""
        grids = {image_id: trunk.grid(image_id) for image_id in ids}
        shapes: dict[tuple[int, int], list[str]] = defaultdict(list)
        for image_id, grid in grids.items():
            canvas = self.network.canvas(grid.resized_size)
            shapes[canvas[0] // grid.stride, canvas[1] // grid.stride].append(image_id)
        maps: dict[str, tuple[Tensor, Grid]] = {}
        for cells, members in shapes.items():
            arrays = np.stack([trunk.array(image_id) for image_id in members])
            maps |= self._finish(torch.from_numpy(arrays).to(self.device).float(), cells, members, grids)
        return maps

    def forward_live(self, images: dict[str, PillowImage.Image], long_side: int) -> dict[str, tuple[Tensor, Grid]]:
        """The same of images themselves: the trunk runs too, without gradients, as its blocks are not trained."""
        shapes: dict[tuple[int, ...], list[str]] = defaultdict(list)
        prepared = {image_id: self.network.preprocess(image, long_side) for image_id, image in images.items()}
        for image_id, (pixels, _) in prepared.items():
            shapes[tuple(pixels.shape)].append(image_id)
        grids = {image_id: grid for image_id, (_, grid) in prepared.items()}
        maps: dict[str, tuple[Tensor, Grid]] = {}
        for members in shapes.values():
            pixels = torch.stack([prepared[image_id][0] for image_id in members]).to(self.device)
            with torch.no_grad():
                activations = self.network.trunk(pixels, self.first)
            maps |= self._finish(activations, self.network.cells(pixels), members, grids)
        return maps

    def _finish(
        self, activations: Tensor, cells: tuple[int, int], members: list[str], grids: dict[str, Grid]
    ) -> dict[str, tuple[Tensor, Grid]]:
        """Run the tail on a batch of one padded shape, and cut each image's map to its valid cells."""
        maps = self.network.tail(activations, cells, self.first, self.spec).permute(0, 2, 3, 1)
        cut = {}
        for image_id, features in zip(members, maps, strict=True):
            height, width = grids[image_id].shape
            cut[image_id] = features[:height, :width], grids[image_id]
        return cut

    def overflow(self, trunk: Store, image_id: str, key: str) -> str:
        """Where an image's features leave the backbone's precision, which `key` of params.yaml sets."""
        canvas, stride = self.network.canvas(trunk.grid(image_id).resized_size), self.network.stride
        entering = torch.from_numpy(trunk.array(image_id))[None].to(self.device)
        cells, stop = (canvas[0] // stride, canvas[1] // stride), self.network.stop(self.spec)
        return self.network.overflow(entering, cells, self.first, stop, key=key, precision=self.spec.precision)

    @torch.inference_mode()
    def features(self, trunk: Store, ids: list[str], batch_size: int) -> Iterator[tuple[str, Tensor, Grid]]:
        """Feature maps of many images, in order, without gradients."""
        for at in range(0, len(ids), batch_size):
            batch = ids[at : at + batch_size]
            maps = self.forward(trunk, batch)
            for image_id in batch:
                yield image_id, *maps[image_id]
