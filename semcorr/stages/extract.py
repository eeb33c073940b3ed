"""extract: the features of every image of a dataset, each image encoded once.

Batches hold images of one padded shape, in a fixed order, so that the same inputs give the same bytes.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from tqdm import tqdm

from semcorr import runtime, store
from semcorr.backbones import build, load
from semcorr.backbones.base import Backbone
from semcorr.datasets.base import Image, read_images
from semcorr.errors import UserError
from semcorr.geometry import Grid, resized_size
from semcorr.graph import Job
from semcorr.params import Params
from semcorr.provenance import expect, provenance

LIBRARIES = ("torch", "timm", "segment-anything")


def extract(job: Job, params: Params) -> str:
    """Write the feature store of one backbone, its tensors and a dataset."""
    spec = params.backbones[job.cell["backbone"]]

    def features(network: Backbone, images: Tensor) -> Tensor:
        return network.features(images, spec.layer, spec.norm).permute(0, 2, 3, 1)

    return encode(job, params, features, spec.precision, valid_only=True)


def encode(
    job: Job,
    params: Params,
    forward: Callable[[Backbone, Tensor], Tensor],
    precision: str,
    *,
    valid_only: bool,
) -> str:
    """Run every image of a dataset through `forward` and store what it gives.

    Args:
        job: with inputs `tensors` and `images`, and the output `store`.
        params: of the experiment.
        forward: network and (B, 3, H, W) images -> (B, ...) arrays to store.
        precision: of the store.
        valid_only: cut (B, h, w, C) to the cells that the image covers.
    """
    spec = params.backbones[job.cell["backbone"]]
    inputs = {role: expect(job.inputs[role], fingerprint) for role, fingerprint in job.expects.items()}
    device = runtime.device(params)
    network = load(build(spec), job.inputs["tensors"]).to(device)
    images = read_images(job.inputs["images"])
    folder = job.inputs["images"].parent / "images"
    record = provenance(job, inputs, versions={name: version(name) for name in LIBRARIES})
    with (
        store.create(job.outputs["store"], record) as writer,
        tqdm(total=len(images), unit="image", desc=" ".join([job.stage, *job.cell.values()]), disable=None) as bar,
        torch.inference_mode(),
    ):
        for batch, pixels, grids in _batches(network, images, folder, spec.image_size, params):
            arrays = forward(network, pixels.to(device)).to(getattr(torch, precision)).cpu().numpy()
            for image, array, grid in zip(batch, arrays, grids, strict=True):
                if not np.isfinite(array).all():
                    raise UserError(f"{job.cell['backbone']}: features of {image.id} are not finite in {precision}")
                height, width = grid.shape
                writer.add(image.id, array[:height, :width] if valid_only else array, grid)
            bar.update(len(batch))
    size = job.outputs["store"].stat().st_size / 1e6
    return f"{' '.join(job.cell.values())}: {len(images):,} images, {size:,.0f} MB"


def _batches(
    network: Backbone, images: list[Image], folder: Path, long_side: int, params: Params
) -> Iterator[tuple[list[Image], Tensor, list[Grid]]]:
    """Batches of images of one padded shape; the next ones are decoded while the network runs."""
    shapes: dict[tuple[int, int], list[Image]] = defaultdict(list)
    for image in images:
        shapes[network.canvas(resized_size((image.height, image.width), long_side))].append(image)
    size = params.runtime.batch_size
    chunks = [group[at : at + size] for group in shapes.values() for at in range(0, len(group), size)]

    def prepare(chunk: list[Image]) -> tuple[Tensor, list[Grid]]:
        prepared = [network.preprocess(read_image(folder, image), long_side) for image in chunk]
        return torch.stack([pixels for pixels, _ in prepared]), [grid for _, grid in prepared]

    if params.runtime.workers == 0:
        for chunk in chunks:
            yield chunk, *prepare(chunk)
        return
    with ThreadPoolExecutor(params.runtime.workers) as pool:
        ahead = params.runtime.workers + 1
        pending = [pool.submit(prepare, chunk) for chunk in chunks[:ahead]]
        for index, chunk in enumerate(chunks):
            ready = pending.pop(0)
            if index + ahead < len(chunks):
                pending.append(pool.submit(prepare, chunks[index + ahead]))
            yield chunk, *ready.result()


def read_image(folder: Path, image: Image) -> PillowImage.Image:
    """Decode one image, provided that its bytes are those that were fetched.

    Raises:
        UserError: it is missing, damaged or another.
    """
    path = folder / image.file
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != image.sha256:
            raise UserError(f"{path}: changed since it was fetched. Run: dvc repro (or delete {folder.parent})")
        decoded = PillowImage.open(io.BytesIO(content))
        decoded.load()
    except FileNotFoundError:
        raise UserError(f"{path}: the image is missing. Run: dvc repro (or delete {folder.parent})") from None
    except OSError as error:
        raise UserError(f"{path}: not a readable image ({error})") from None
    return decoded
