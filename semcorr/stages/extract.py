"""extract: the features of every image of a dataset, each image encoded once.

Images are decoded by threads of their own while the network runs, and written by another. Batches hold images of one
padded shape, in a fixed order. On a CPU an image's features do not depend on its batch; on a GPU they may differ in the
last bit of float16. A run that was killed goes on where it stopped.
"""

import hashlib
import io
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

import torch
from PIL import Image as PillowImage
from torch import Tensor
from tqdm import tqdm

from semcorr.artifacts import store
from semcorr.artifacts.provenance import expect, provenance
from semcorr.datasets.base import Image, read_images
from semcorr.datasets.decode import decode
from semcorr.engine.graph import Job
from semcorr.errors import UserError
from semcorr.finite import rounded
from semcorr.geometry import Grid, resized_size
from semcorr.networks import runtime
from semcorr.networks.backbones import build, load
from semcorr.networks.backbones.base import Backbone
from semcorr.params import Params

LIBRARIES = ("torch", "timm", "segment-anything")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What is stored of each image.

    Attributes:
        forward: network and (B, 3, H, W) images -> (B, ...) arrays.
        shape: network and the grid's padded cells (h, w) -> shape of one image's array.
        precision: of the store, "float16" or "float32".
        key: of params.yaml that sets it.
        stop: network -> the block after the last one that runs.
        valid_only: cut (B, h, w, C) to the cells that see the image.
    """

    forward: Callable[[Backbone, Tensor], Tensor]
    shape: Callable[[Backbone, tuple[int, int]], tuple[int, ...]]
    precision: str
    key: str
    stop: Callable[[Backbone], int]
    valid_only: bool


def extract(job: Job, params: Params) -> str:
    """Write the feature store of one backbone, its tensors and a dataset."""
    spec = params.backbones[job.cell["backbone"]]
    encoder = Encoder(
        forward=lambda network, images: network.features(images, spec).permute(0, 2, 3, 1),
        shape=lambda network, cells: (*cells, network.channels(spec)),
        precision=spec.precision,
        key=f"backbones.{job.cell['backbone']}.precision",
        stop=lambda network: network.stop(spec),
        valid_only=True,
    )
    return encode(job, params, encoder)


def encode(job: Job, params: Params, encoder: Encoder) -> str:
    """Run every image of a dataset through a network and store what it gives."""
    spec = params.backbones[job.cell["backbone"]]
    inputs = {role: expect(job.inputs[role], fingerprint) for role, fingerprint in job.expects.items()}
    device = runtime.device(params)
    network = load(build(spec), job.inputs["tensors"]).to(device)
    images = read_images(job.inputs["images"])
    folder = job.inputs["images"].parent / "images"
    name = " ".join([job.stage, *job.cell.values()])
    record = provenance(job, inputs, versions={library: version(library) for library in LIBRARIES}, device=device.type)
    entries = {image.id: _entry(network, image, spec.image_size, encoder) for image in images}
    path = job.outputs["store"]
    forward = runtime.compiled(encoder.forward, params)

    def why(shown: Tensor) -> str:
        stop = encoder.stop(network)
        return network.overflow_in(shown[None].to(device), stop, key=encoder.key, precision=encoder.precision)

    with (
        store.create(path, record, entries, encoder.precision, store.basis(job)) as writer,
        tqdm(total=len(images), unit="image", desc=name, disable=None, initial=len(writer.done)) as bar,
        torch.inference_mode(),
        runtime.autocast(device, spec.compute),
        _Behind(lambda image_id, array: writer.add(image_id, array)) as behind,
    ):
        for batch, pixels in _batches(network, images, folder, spec.image_size, params, writer.done):
            arrays = _halving(lambda part: forward(network, part.to(device)), pixels)
            for image, shown, array in zip(batch, pixels, arrays, strict=True):
                height, width = entries[image.id].grid.shape
                array = array[:height, :width] if encoder.valid_only else array
                kept = rounded(array, encoder.precision, f"{name}: {image.id}", partial(why, shown))
                behind.put(image.id, kept.cpu().numpy())
            bar.update(len(batch))
    return f"{' '.join(job.cell.values())}: {len(images):,} images, {path.stat().st_size / 1e6:,.0f} MB"


def _entry(network: Backbone, image: Image, long_side: int, encoder: Encoder) -> store.Entry:
    """The shape and geometry of one image's array."""
    size = image.height, image.width
    resized = resized_size(size, long_side)
    grid = Grid(image_size=size, resized_size=resized, stride=network.stride)
    height, width = network.canvas(resized)
    cells = grid.shape if encoder.valid_only else (height // network.stride, width // network.stride)
    return store.Entry(shape=encoder.shape(network, cells), grid=grid)


def _batches(
    network: Backbone, images: list[Image], folder: Path, long_side: int, params: Params, done: set[str]
) -> Iterator[tuple[list[Image], Tensor]]:
    """Batches of images of one padded shape, decoded ahead; those that are done already are left out whole."""
    shapes: dict[tuple[int, int], list[Image]] = defaultdict(list)
    for image in images:
        shapes[network.canvas(resized_size((image.height, image.width), long_side))].append(image)
    size = params.runtime.batch_size
    chunks = [group[at : at + size] for group in shapes.values() for at in range(0, len(group), size)]
    chunks = [chunk for chunk in chunks if not done.issuperset(image.id for image in chunk)]

    def prepare(image: Image) -> Tensor:
        return network.preprocess(read_image(folder, image), long_side)[0]

    if params.runtime.workers == 0:
        for chunk in chunks:
            yield chunk, torch.stack([prepare(image) for image in chunk])
        return
    with ThreadPoolExecutor(params.runtime.workers) as pool:
        ahead = 1 + -(-params.runtime.workers // size)  # batches: enough to keep every worker busy
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


def read_image(folder: Path, image: Image) -> PillowImage.Image:
    """Decode one image, provided that its bytes are those that were fetched.

    Raises:
        UserError: it is missing, damaged or another.
    """
    path, remedy = folder / image.file, f"Run: dvc repro (or delete {folder.parent})"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: the image is missing. {remedy}") from None
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise UserError(f"{path}: changed since it was fetched. {remedy}")
    return decode(io.BytesIO(content), upright=False, name=path, remedy=remedy)
