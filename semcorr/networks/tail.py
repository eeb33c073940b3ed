"""The upper part of a network, run on the trunk's stored activations."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image as PillowImage
from torch import Tensor

from semcorr.artifacts.store import Store
from semcorr.geometry import Grid
from semcorr.networks import views
from semcorr.networks.backbones import build_blockwise, load
from semcorr.networks.feed import Feed
from semcorr.params import BackboneSpec, Look


class Tail:
    """The blocks from the trunk's end up to the feature layer.

    Args:
        spec: of the backbone.
        blocks: how many blocks the trunk leaves out.
        device: to compute on.
        tensors: safetensors files of the network; later files override earlier ones.
    """

    def __init__(self, spec: BackboneSpec, blocks: int, device: torch.device, *tensors: Path):
        self.spec = spec
        self.device = device
        self.network = load(build_blockwise(spec), *tensors).to(device)
        self.first = self.network.stop(spec) - blocks
        self._feeds: dict[Store, Feed] = {}

    def forward(
        self,
        trunk: Store,
        ids: list[str],
        mirrored: bool = False,
        blocks: dict[str, Tensor] | None = None,
        size: int | None = None,
    ) -> dict[str, tuple[Tensor, Grid]]:
        """Feature maps (h, w, C), valid cells only, and grids of some images; one pass per padded shape.

        Args:
            trunk: the input of the tuned blocks.
            ids: of the images.
            mirrored: whether they are mirrored, all of them; the trunk must have been stored of these too.
            blocks: gets each image's map before the head, (h, w, C) in cells of the network.
            size: of the images, if it is not the backbone's own; the trunk must have been stored of it too.
        """
        names = {image_id: views.named(image_id, mirrored=mirrored, size=size) for image_id in ids}
        feed = self._feed(trunk)
        return self._finish(
            {image_id: trunk.grid(name) for image_id, name in names.items()},
            lambda members: feed.stacked([names[image_id] for image_id in members]),
            blocks,
        )

    def ahead(self, trunk: Store, ids: list[str], mirrored: bool = False, size: int | None = None) -> None:
        """Say which images `forward` will be asked for next; see `Feed`."""
        names = {image_id: views.named(image_id, mirrored=mirrored, size=size) for image_id in ids}
        for members in self._by_shape({image_id: trunk.grid(name) for image_id, name in names.items()}).values():
            self._feed(trunk).ahead([names[image_id] for image_id in members])

    def _feed(self, trunk: Store) -> Feed:
        if trunk not in self._feeds:
            self._feeds[trunk] = Feed(trunk, self.device)
        return self._feeds[trunk]

    def forward_live(
        self,
        images: dict[str, PillowImage.Image],
        long_side: int,
        mirrored: bool = False,
        blocks: dict[str, Tensor] | None = None,
    ) -> dict[str, tuple[Tensor, Grid]]:
        """The same for images: the trunk runs too, without gradients, since its blocks are not trained."""
        prepared = {image_id: self.network.preprocess(image, long_side) for image_id, image in images.items()}

        @torch.no_grad()
        def activations(members: list[str]) -> Tensor:
            shown = [prepared[image_id] for image_id in members]
            pixels = [self.network.mirrored(*one) if mirrored else one[0] for one in shown]
            return self.network.trunk(torch.stack(pixels).to(self.device), self.first)

        return self._finish({image_id: grid for image_id, (_, grid) in prepared.items()}, activations, blocks)

    def _finish(
        self,
        grids: dict[str, Grid],
        activations: Callable[[list[str]], Tensor],
        blocks: dict[str, Tensor] | None,
    ) -> dict[str, tuple[Tensor, Grid]]:
        """Run the tail on one batch per padded shape, and cut each image's map to its valid cells."""
        # The trunk knows nothing of a finer grid.
        grids = {image_id: self.network.grid(grid.image_size, grid.resized_size) for image_id, grid in grids.items()}
        maps = {}
        for cells, members in self._by_shape(grids).items():
            raw = self.network.tail(activations(members), cells, self.first, self.spec)
            batch = self.network.finished(raw).permute(0, 2, 3, 1)
            for image_id, features in zip(members, batch, strict=True):
                height, width = grids[image_id].shape
                maps[image_id] = features[:height, :width], grids[image_id]
            if blocks is not None:
                for image_id, features in zip(members, raw.permute(0, 2, 3, 1), strict=True):
                    height, width = replace(grids[image_id], upsample=1).shape
                    blocks[image_id] = features[:height, :width]
        return maps

    def _by_shape(self, grids: dict[str, Grid]) -> dict[tuple[int, int], list[str]]:
        """The images of each padded grid (h, w)."""
        shapes: dict[tuple[int, int], list[str]] = defaultdict(list)
        for image_id, grid in grids.items():
            shapes[self._cells(grid)].append(image_id)
        return shapes

    def _cells(self, grid: Grid) -> tuple[int, int]:
        """The padded grid (h, w) of an image."""
        height, width = self.network.canvas(grid.resized_size)
        return height // grid.stride, width // grid.stride

    def overflow(self, trunk: Store, image_id: str, key: str) -> str:
        """Where an image's features overflow the backbone's precision, which is set by `key` of params.yaml."""
        activations = torch.from_numpy(trunk.array(image_id))[None].to(self.device)
        cells, stop = self._cells(trunk.grid(image_id)), self.network.stop(self.spec)
        return self.network.overflow(activations, cells, self.first, stop, key=key, precision=self.spec.precision)

    @torch.inference_mode()
    def features(
        self, trunk: Store, ids: list[str], batch_size: int, looks: Sequence[Look]
    ) -> Iterator[tuple[str, Tensor, Grid]]:
        """Feature maps of many images, in order, without gradients; the given views, joined."""
        parts = [ids[at : at + batch_size] for at in range(0, len(ids), batch_size)]
        sizes = [None if look.size == self.spec.image_size else look.size for look in looks]
        for batch, following in zip(parts, [*parts[1:], []], strict=False):
            for look, size in zip(looks, sizes, strict=True):
                self.ahead(trunk, following, look.mirrored, size)
            maps = [
                self.forward(trunk, batch, look.mirrored, size=size) for look, size in zip(looks, sizes, strict=True)
            ]
            for image_id in batch:
                pairs = zip(looks, maps, strict=True)
                seen = [views.Seen(*one[image_id], look.mirrored) for look, one in pairs]
                yield image_id, *views.joined(seen)
