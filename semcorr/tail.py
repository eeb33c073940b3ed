"""The upper part of a network, fed with the trunk's activations out of their store."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semcorr.backbones import build, load
from semcorr.geometry import Grid
from semcorr.params import Backbone
from semcorr.store import Store


class Tail:
    """The blocks from the trunk's end up to the feature layer.

    Args:
        spec: of the backbone.
        blocks: how many blocks the trunk leaves out.
        device: to compute on.
        tensors: safetensors files of the network, later ones over earlier ones.
    """

    def __init__(self, spec: Backbone, blocks: int, device: torch.device, *tensors: Path):
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
        found = {}
        for cells, members in shapes.items():
            arrays = np.stack([trunk.array(image_id) for image_id in members])
            activations = torch.from_numpy(arrays).to(self.device).float()
            maps = self.network.tail(activations, cells, self.first, self.spec)
            for image_id, features in zip(members, maps.permute(0, 2, 3, 1), strict=True):
                height, width = grids[image_id].shape
                found[image_id] = features[:height, :width], grids[image_id]
        return found

    @torch.inference_mode()
    def features(self, trunk: Store, ids: list[str], batch_size: int) -> Iterator[tuple[str, Tensor, Grid]]:
        """Feature maps of many images, in order, without gradients."""
        for at in range(0, len(ids), batch_size):
            batch = ids[at : at + batch_size]
            found = self.forward(trunk, batch)
            for image_id in batch:
                yield image_id, *found[image_id]
