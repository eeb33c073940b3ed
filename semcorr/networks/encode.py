"""The loop that fills feature stores: images, or what was cached of them, through a network, each array to its place.

Images are decoded by threads of their own while the network runs, and arrays written by another. Batches hold images of
one padded shape, in a fixed order. On a CPU an image's features do not depend on its batch; on a GPU they may differ in
the last bit of float16. A run that was killed goes on where it stopped.
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
from tqdm import tqdm

from semcorr.artifacts import store
from semcorr.datasets.base import Image, read_image, read_images
from semcorr.errors import UserError
from semcorr.geometry import Grid, resized_size
from semcorr.networks import runtime
from semcorr.networks.backbones.base import Backbone
from semcorr.params import BackboneSpec, Runtime
from semcorr.tensors import rounded

LIBRARIES = ("torch", "timm", "segment-anything")
Arrays = Iterator[tuple[str, Tensor, Callable[[], str]]]  # image id, its array, and what to say where that overflows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A store that is to be filled.

    Attributes:
        path: of the store.
        record: its provenance.
        begun_on: what the arrays are computed by and from; see `store.create`.
        title: what progress and errors call it.
        precision: of its arrays, "float16" or "float32".
        key: of params.yaml that sets it.
    """

    path: Path
    record: dict[str, Any]
    begun_on: Any
    title: str
    precision: str
    key: str


def fill(kept: Kept, entries: dict[str, store.Entry], arrays: Callable[[set[str]], Arrays]) -> None:
    """Write a store, array by array.

    Args:
        kept: the store.
        entries: shape and geometry of every image.
        arrays: ids of images that are in it already -> what it lacks.

    Raises:
        UserError: an array overflows the store's precision; the disk is full; another process writes the same store.
    """
    with (
        store.create(kept.path, kept.record, entries, kept.precision, kept.begun_on) as writer,
        tqdm(total=len(entries), unit="image", desc=kept.title, disable=None, initial=len(writer.done)) as bar,
        torch.inference_mode(),
        _Behind(lambda image_id, array: writer.add(image_id, array)) as behind,
    ):
        for image_id, array, why in arrays(writer.done):
            array = rounded(array, kept.precision, f"{kept.title}: {image_id}", why)
            behind.put(image_id, array.cpu().numpy())
            bar.update()


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What is computed of each image.

    Attributes:
        network: on its device.
        spec: of the network.
        forward: (B, 3, H, W) images -> (B, ...) arrays.
        shape: padded cells (h, w) -> shape of one image's array.
        stop: the block after the last one that runs.
        valid_only: cut (B, h, w, C) to the cells that see the image.
    """

    network: Backbone
    spec: BackboneSpec
    forward: Callable[[Tensor], Tensor]
    shape: Callable[[tuple[int, int]], tuple[int, ...]]
    stop: int
    valid_only: bool

    def entry(self, image: Image) -> store.Entry:
        """The shape and geometry of one image's array."""
        size, stride = (image.height, image.width), self.network.stride
        grid = Grid(image_size=size, resized_size=resized_size(size, self.spec.image_size), stride=stride)
        height, width = self.network.canvas(grid.resized_size)
        cells = grid.shape if self.valid_only else (height // stride, width // stride)
        return store.Entry(shape=self.shape(cells), grid=grid)


def encode(encoder: Encoder, index: Path, kept: Kept, options: Runtime) -> str:
    """Run every image of a dataset through a network and keep what it gives; what was written, in words.

    Args:
        encoder: what is computed.
        index: of the dataset's images, beside which they lie.
        kept: the store.
        options: how the machine is used.

    Raises:
        UserError: an image is not what was fetched; see also `fill`.
    """
    network, spec, images = encoder.network, encoder.spec, read_images(index)
    device = next(network.parameters()).device
    entries = {image.id: encoder.entry(image) for image in images}
    forward = runtime.compiled(encoder.forward, options)

    def why(shown: Tensor) -> str:
        return network.overflow_in(shown[None].to(device), encoder.stop, key=kept.key, precision=kept.precision)

    def arrays(done: set[str]) -> Arrays:
        for batch, pixels in _batches(network, images, index.parent / "images", spec.image_size, options, done):
            outputs = _halving(lambda part: forward(part.to(device)), pixels)
            for image, shown, array in zip(batch, pixels, outputs, strict=True):
                height, width = entries[image.id].grid.shape
                yield image.id, array[:height, :width] if encoder.valid_only else array, partial(why, shown)

    with runtime.autocast(device, spec.compute):
        fill(kept, entries, arrays)
    return f"{len(images):,} images, {kept.path.stat().st_size / 1e6:,.0f} MB"


def dense(network: Backbone, spec: BackboneSpec, images: Tensor, grid: Grid, what: str, key: str) -> Tensor:
    """The features (B, h, w, C) of images of one size, valid cells only, rounded to the backbone's precision.

    Args:
        network: on the images' device.
        spec: of the network.
        images: (B, 3, H, W), standardised and padded.
        grid: of each of them.
        what: names them in errors.
        key: that sets the precision, in errors.
    """
    with runtime.autocast(images.device, spec.compute):
        features = network.features(images, spec)
    height, width = grid.shape
    why = partial(network.overflow_in, images[:1], network.stop(spec), key=key, precision=spec.precision)
    return rounded(features.permute(0, 2, 3, 1)[:, :height, :width], spec.precision, what, why)


def versions() -> dict[str, str]:
    """Of the libraries whose code the features come from."""
    return {library: version(library) for library in LIBRARIES}


def _batches(
    network: Backbone, images: list[Image], folder: Path, long_side: int, options: Runtime, done: set[str]
) -> Iterator[tuple[list[Image], Tensor]]:
    """Batches of images of one padded shape, decoded ahead; those that are done already are left out whole."""
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
        ahead = 1 + -(-options.workers // size)  # batches: enough to keep every worker busy
        pending = [[pool.submit(prepare, image) for image in chunk] for chunk in chunks[:ahead]]
        for index, chunk in enumerate(chunks):
            ready = pending.pop(0)
            if index + ahead < len(chunks):
                pending.append([pool.submit(prepare, image) for image in chunks[index + ahead]])
            yield chunk, torch.stack([future.result() for future in ready])


def _halving(forward: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Run a batch; where the GPU's memory does not hold it, run its halves, and say so."""
    try:
        return forward(pixels)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise UserError(
                "the GPU's memory does not hold one image. Lower backbones.*.image_size, or say runtime.device: cpu"
            ) from None
    half = -(-len(pixels) // 2)
    logger.warning("the GPU's memory does not hold %d images at once, going on with %d", len(pixels), half)
    torch.cuda.empty_cache()
    return torch.cat([_halving(forward, part) for part in pixels.split(half)])


class _Behind:
    """Calls a function in a thread of its own, in order, a few calls behind; its error is raised here."""

    def __init__(self, function: Callable[..., None], room: int = 64):
        self._function = function
        self._waiting: queue.Queue = queue.Queue(room)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "_Behind":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, *arguments: object) -> None:
        """Have the function called with these arguments."""
        if self._error is not None:
            raise self._error
        self._waiting.put(arguments)

    def _work(self) -> None:
        while (arguments := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._function(*arguments)
                except BaseException as error:  # raised where the work was ordered
                    self._error = error
