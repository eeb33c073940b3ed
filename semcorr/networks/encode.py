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
from semcorr.params import BackboneSpec, Runtime
from semcorr.tensors import rounded

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
        features: whether the arrays are features: (h, w, C) of the valid cells, of both views joined; or a trunk's
            activations, padding included, of each view under its own name.
        mirrored: whether the mirrored images run too.
    """

    network: Backbone
    spec: BackboneSpec
    forward: Callable[[Tensor], Tensor]
    shape: Callable[[tuple[int, int]], tuple[int, ...]]
    stop: int
    features: bool
    mirrored: bool

    def entry(self, image: Image) -> store.Entry:
        """The shape and geometry of one image's array."""
        size, stride = (image.height, image.width), self.network.stride
        grid = self.network.grid(size, resized_size(size, self.spec.image_size))
        height, width = self.network.canvas(grid.resized_size)
        cells = grid.shape if self.features else (height // stride, width // stride)
        return store.Entry(shape=self.shape(cells), grid=grid)

    def names(self, image_id: str) -> list[str]:
        """The names of one image's arrays."""
        return [image_id, views.mirrored(image_id)] if self.mirrored and not self.features else [image_id]

    def arrays(self, image_id: str, grid: Grid, outputs: list[Tensor]) -> list[tuple[str, Tensor]]:
        """The arrays of one image by name, from the output of each view."""
        if not self.features:
            return list(zip(self.names(image_id), outputs, strict=True))
        height, width = grid.shape
        return [(image_id, views.joined([output[:height, :width] for output in outputs], grid))]


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
    network, spec, images = encoder.network, encoder.spec, read_images(index)
    device = next(network.parameters()).device
    entries = {name: entry for image in images for entry in [encoder.entry(image)] for name in encoder.names(image.id)}
    forward = runtime.compiled(encoder.forward, options)

    def why(image: Tensor) -> str:
        return network.overflow_in(image[None].to(device), encoder.stop, key=kept.key, precision=kept.precision)

    def arrays(done: set[str]) -> Arrays:
        whole = {image.id for image in images if done.issuperset(encoder.names(image.id))}
        for batch, pixels in batches(network, images, index.parent / "images", spec.image_size, options, whole):
            shown = [pixels]
            if encoder.mirrored:
                pairs = zip(batch, pixels, strict=True)
                shown.append(torch.stack([network.mirrored(one, entries[image.id].grid) for image, one in pairs]))
            outputs = [halving(lambda part: forward(part.to(device)), view) for view in shown]
            for image, one, *seen in zip(batch, pixels, *outputs, strict=True):
                for name, array in encoder.arrays(image.id, entries[image.id].grid, seen):
                    yield name, array, partial(why, one)

    with runtime.autocast(device, spec.compute):
        fill(kept, entries, arrays)
    return f"{len(images):,} images, {kept.path.stat().st_size / 1e6:,.0f} MB"


def dense(network: Backbone, spec: BackboneSpec, images: Tensor, grid: Grid, what: str, key: str) -> Tensor:
    """The features (B, h, w, C) of images of one size, valid cells only, rounded to the backbone's precision.

    Both views, if the backbone has two.

    Args:
        network: on the images' device.
        spec: of the network.
        images: (B, 3, H, W), standardised and padded.
        grid: of each image.
        what: the images' name in errors.
        key: sets the precision; named in errors.
    """
    height, width = grid.shape
    shown = [images, network.mirrored(images, grid)] if spec.mirrored else [images]
    with runtime.autocast(images.device, spec.compute):
        maps = [network.features(view, spec).permute(0, 2, 3, 1)[:, :height, :width] for view in shown]
    features = torch.stack([views.joined(list(seen), grid) for seen in zip(*maps, strict=True)])
    why = partial(network.overflow_in, images[:1], network.stop(spec), key=key, precision=spec.precision)
    return rounded(features, spec.precision, what, why)


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the features."""
    return {library: version(library) for library in LIBRARIES}


def batches(
    network: Backbone, images: list[Image], folder: Path, long_side: int, options: Runtime, done: set[str]
) -> Iterator[tuple[list[Image], Tensor]]:
    """Batches of images of one padded shape, decoded ahead; batches in which all are done are skipped."""
    shapes: dict[tuple[int, int], list[Image]] = defaultdict(list)
    for image in images:
        shapes[network.canvas(resized_size((image.height, image.width), long_side))].append(image)
    size = options.batch_size
    chunks = [group[at : at + size] for group in shapes.values() for at in range(0, len(group), size)]
    chunks = [chunk for chunk in chunks if not done.issuperset(image.id for image in chunk)]

    def prepare(image: Image) -> Tensor:
        return network.preprocess(read_image(folder, image), long_side)[0]

    if options.workers == 0:
        for chunk in chunks:
            yield chunk, torch.stack([prepare(image) for image in chunk])
        return
    with ThreadPoolExecutor(options.workers) as pool:
        ahead = 1 + -(-options.workers // size)  # batches, enough to keep every worker busy
        pending = [[pool.submit(prepare, image) for image in chunk] for chunk in chunks[:ahead]]
        for index, chunk in enumerate(chunks):
            ready = pending.pop(0)
            if index + ahead < len(chunks):
                pending.append([pool.submit(prepare, image) for image in chunks[index + ahead]])
            yield chunk, torch.stack([future.result() for future in ready])


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
