"""The loop that runs images, or their cached activations, through a network and fills feature stores.

Separate threads decode images and write arrays while the network runs. Batches hold images of one padded shape, in a
fixed order. On a CPU an image's features do not depend on its batch; on a GPU they may differ in the last bit of
float16. A run that was killed resumes where it stopped.
"""

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semcorr.artifacts import store
from semcorr.artifacts.progress import progress
from semcorr.datasets.base import Image, read_image, read_images
from semcorr.errors import UserError
from semcorr.geometry import Grid, resized_size
from semcorr.networks import runtime, views
from semcorr.networks.backbones.base import Backbone
from semcorr.params import BackboneSpec, Look, Runtime
from semcorr.tensors import pinned, rounded

LIBRARIES = ("torch", "timm", "segment-anything")
Arrays = Iterator[tuple[str, Tensor, Callable[[], str]]]  # image id, array, and its overflow message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoreTarget:
    """A store to be filled.

    Attributes:
        path: of the store.
        record: its provenance.
        resume_key: the code and inputs of the arrays; see `store.create`.
        title: its name in the progress bar and errors.
        precision: of its arrays, "float16" or "float32".
        key: sets the precision in params.yaml.
    """

    path: Path
    record: dict[str, Any]
    resume_key: Any
    title: str
    precision: str
    key: str


def fill(kept: StoreTarget, entries: dict[str, store.Entry], arrays: Callable[[set[str]], Arrays]) -> None:
    """Write a store, array by array.

    Args:
        kept: the store.
        entries: shape and geometry of every image.
        arrays: ids of finished images -> the missing arrays.

    Raises:
        UserError: an array overflows the store's precision, the disk is full, or another process writes the store.
    """
    with (
        store.create(kept.path, kept.record, entries, kept.precision, kept.resume_key) as writer,
        progress(total=len(entries), unit="image", desc=kept.title, initial=len(writer.done)) as bar,
        torch.inference_mode(),
        _Background(lambda image_id, array: writer.add(image_id, array)) as background,
    ):
        for image_id, array, why in arrays(writer.done):
            array = rounded(array, kept.precision, f"{kept.title}: {image_id}", why)
            background.put(image_id, array.cpu().numpy())
            bar.update()


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What is computed for each image.

    Attributes:
        network: on its device.
        spec: of the network.
        forward: (B, 3, H, W) images -> (B, ...) arrays.
        shape: padded cells (h, w) -> shape of one image's array.
        stop: the block after the last one that runs.
        features: whether the arrays are features: (h, w, C) of the valid cells, of all views joined; or a trunk's
            activations, padding included, of each view under its own name.
        looks: the views.
    """

    network: Backbone
    spec: BackboneSpec
    forward: Callable[[Tensor], Tensor]
    shape: Callable[[tuple[int, int]], tuple[int, ...]]
    stop: int
    features: bool
    looks: list[Look]

    @property
    def sizes(self) -> list[int]:
        """The sizes of the views."""
        return list(dict.fromkeys(look.size for look in self.looks))

    def grid(self, image: Image, size: int) -> Grid:
        """How features lie on an image of some longer side."""
        whole = image.height, image.width
        return self.network.grid(whole, resized_size(whole, size))

    def entries(self, image: Image) -> dict[str, store.Entry]:
        """The shape and geometry of one image's arrays, by name."""
        if self.features:
            grid = self.grid(image, max(self.sizes))
            return {image.id: store.Entry(shape=self.shape(grid.shape), grid=grid)}
        found = {}
        for look in self.looks:
            grid, stride = self.grid(image, look.size), self.network.stride
            height, width = self.network.canvas(grid.resized_size)
            shape = self.shape((height // stride, width // stride))
            found[self._name(image.id, look)] = store.Entry(shape=shape, grid=grid)
        return found

    def _name(self, image_id: str, look: Look) -> str:
        other = None if look.size == self.spec.image_size else look.size
        return views.named(image_id, mirrored=look.mirrored, size=other)

    def arrays(self, image: Image, outputs: list[Tensor]) -> list[tuple[str, Tensor]]:
        """The arrays of one image by name, from the output of each view."""
        pairs = list(zip(self.looks, outputs, strict=True))
        if not self.features:
            return [(self._name(image.id, look), output) for look, output in pairs]
        seen = []
        for look, output in pairs:
            grid = self.grid(image, look.size)
            height, width = grid.shape
            seen.append(views.Seen(output[:height, :width], grid, look.mirrored))
        return [(image.id, views.joined(seen)[0])]


def encode(encoder: Encoder, index: Path, kept: StoreTarget, options: Runtime) -> str:
    """Run every image of a dataset through a network, store the results, and return a summary.

    Args:
        encoder: what is computed.
        index: of the dataset's images, next to their folder.
        kept: the store.
        options: how the machine is used.

    Raises:
        UserError: an image has changed since it was fetched; see also `fill`.
    """
    network, images = encoder.network, read_images(index)
    device = network.device
    named = {image.id: encoder.entries(image) for image in images}
    entries = {name: entry for own in named.values() for name, entry in own.items()}
    forward = runtime.compiled(encoder.forward, options)

    def why(image: Tensor) -> str:
        return network.overflow_in(image[None].to(device), encoder.stop, key=kept.key, precision=kept.precision)

    def arrays(done: set[str]) -> Arrays:
        whole = {image.id for image in images if done.issuperset(named[image.id])}
        for batch, pixels in batches(network, images, index.parent / "images", encoder.sizes, options, whole):
            shown = []
            for look in encoder.looks:
                at = pixels[encoder.sizes.index(look.size)]
                if look.mirrored:
                    pairs = zip(batch, at, strict=True)
                    at = torch.stack([network.mirrored(one, encoder.grid(image, look.size)) for image, one in pairs])
                shown.append(at)
            outputs = [halving(lambda part: forward(part.to(device, non_blocking=True)), view) for view in shown]
            for image, one, *seen in zip(batch, pixels[0], *outputs, strict=True):
                for name, array in encoder.arrays(image, seen):
                    yield name, array, partial(why, one)

    with runtime.autocast(device, encoder.spec.compute):
        fill(kept, entries, arrays)
    return f"{len(images):,} images, {kept.path.stat().st_size / 1e6:,.0f} MB"


def dense(
    network: Backbone, spec: BackboneSpec, sized: dict[int, tuple[Tensor, Grid]], what: str, key: str
) -> tuple[Tensor, Grid]:
    """The features (B, h, w, C) of images of one size, valid cells only, rounded to the backbone's precision.

    All views of the backbone, joined.

    Args:
        network: on the images' device.
        spec: of the network.
        sized: for each size of the views, the images (B, 3, H, W), standardised and padded, and the grid of each.
        what: the images' name in errors.
        key: sets the precision; named in errors.

    Returns:
        The features, and their grid.
    """
    maps = []
    first, _ = sized[spec.sizes[0]]
    with runtime.autocast(first.device, spec.compute):
        for look in spec.looks:
            images, grid = sized[look.size]
            height, width = grid.shape
            view = network.mirrored(images, grid) if look.mirrored else images
            maps.append(network.features(view, spec).permute(0, 2, 3, 1)[:, :height, :width])
    each = []
    for seen in zip(*maps, strict=True):
        pairs = zip(spec.looks, seen, strict=True)
        each.append(views.joined([views.Seen(one, sized[look.size][1], look.mirrored) for look, one in pairs]))
    features, grid = torch.stack([one for one, _ in each]), each[0][1]
    why = partial(network.overflow_in, first[:1], network.stop(spec), key=key, precision=spec.precision)
    return rounded(features, spec.precision, what, why), grid


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the features."""
    return {library: version(library) for library in LIBRARIES}


def batches(
    network: Backbone, images: list[Image], folder: Path, sizes: list[int], options: Runtime, done: set[str]
) -> Iterator[tuple[list[Image], list[Tensor]]]:
    """Batches of images of one padded shape at each size, decoded ahead; those in which all are done are skipped.

    Args:
        network: pads and standardises.
        images: of the dataset.
        folder: of their files.
        sizes: longer sides, in pixels.
        options: how the machine is used.
        done: ids of images that are not needed.

    Yields:
        The images, and their pixels (B, 3, H, W) at each size.
    """
    shapes: dict[tuple[tuple[int, int], ...], list[Image]] = defaultdict(list)
    for image in images:
        whole = image.height, image.width
        shapes[tuple(network.canvas(resized_size(whole, size)) for size in sizes)].append(image)
    count = options.batch_size
    chunks = [group[at : at + count] for group in shapes.values() for at in range(0, len(group), count)]
    chunks = [chunk for chunk in chunks if not done.issuperset(image.id for image in chunk)]

    def prepare(image: Image) -> list[Tensor]:
        decoded = read_image(folder, image)
        return [network.preprocess(decoded, size)[0] for size in sizes]

    def stacked(ready: list[list[Tensor]]) -> list[Tensor]:
        return [pinned(torch.stack(list(one)), network.device) for one in zip(*ready, strict=True)]

    if options.workers == 0:
        for chunk in chunks:
            yield chunk, stacked([prepare(image) for image in chunk])
        return
    with ThreadPoolExecutor(options.workers) as pool:
        ahead = 1 + -(-options.workers // count)  # batches, enough to keep every worker busy
        pending = [[pool.submit(prepare, image) for image in chunk] for chunk in chunks[:ahead]]
        for index, chunk in enumerate(chunks):
            ready = pending.pop(0)
            if index + ahead < len(chunks):
                pending.append([pool.submit(prepare, image) for image in chunks[index + ahead]])
            yield chunk, stacked([future.result() for future in ready])


def halving(forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Run a batch; if the GPU's memory does not hold it, warn and run its halves."""
    try:
        return forward(pixels)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            remedy = "Lower backbones.*.image_size, or set runtime.device: cpu"
            raise UserError(f"the GPU's memory does not hold one image. {remedy}") from None
    half = -(-len(pixels) // 2)
    logger.warning("the GPU's memory does not hold %d images at once, continuing with %d", len(pixels), half)
    torch.cuda.empty_cache()
    return torch.cat([halving(forward, part) for part in pixels.split(half)])


class _Background:
    """Calls a function in a background thread, in order; its errors are raised in the caller's thread."""

    def __init__(self, function: Callable[..., None], room: int = 64):
        self._function = function
        self._calls: queue.Queue = queue.Queue(room)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "_Background":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._calls.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, *arguments: object) -> None:
        """Queue a call of the function with these arguments."""
        if self._error is not None:
            raise self._error
        self._calls.put(arguments)

    def _work(self) -> None:
        while (arguments := self._calls.get()) is not None:
            if self._error is None:
                try:
                    self._function(*arguments)
                except BaseException as error:  # raised by put or __exit__
                    self._error = error
