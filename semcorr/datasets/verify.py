"""Verification of datasets: every image, annotation and list of pairs of a folder, and the content of indexes."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from semcorr.artifacts.progress import progress
from semcorr.datasets.base import IMAGE_SCHEMA, PAIR_SCHEMA, Benchmark, Image, Pair, index_table
from semcorr.datasets.decode import AGAIN, decode, stored_orientation
from semcorr.datasets.formats import reader
from semcorr.datasets.sources import root_of
from semcorr.errors import UserError
from semcorr.params import FORMATS, DatasetSpec, validate_dataset

T = TypeVar("T")
R = TypeVar("R")


def verified_images(benchmark: Benchmark, folder: Path) -> list[Image]:
    """The images with their checksums; each file is decoded once as a check, and copied to `folder`."""

    def verify(file: str) -> str:
        path = benchmark.root / file
        decode(path, upright=False, remedy=AGAIN)
        content = path.read_bytes()
        copy = folder / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    files = list(dict.fromkeys(image.file for image in benchmark.images))  # several may be objects of one
    digests = dict(zip(files, _each(verify, files), strict=True))
    return [replace(image, sha256=digests[image.file]) for image in benchmark.images]


def require_tables(benchmark: Benchmark) -> None:
    """Build the indexes, so that invalid values are found before a file is copied.

    Raises:
        UserError: a value is invalid, there is no pair, two pairs have the same id, or an image's starts with a dot.
    """
    if not benchmark.pairs:
        why = "; ".join(f"{count:,} {what} left out" for what, count in benchmark.left_out.items())
        raise UserError(
            f"{benchmark.root}: no pair is left to match{f' ({why})' if why else ''}. See its entry in params.yaml"
        )
    seen: dict[str, Pair] = {}
    for pair in benchmark.pairs:
        if (first := seen.setdefault(pair.id, pair)) is not pair:
            both = f"{first.source}, {first.target} and {pair.source}, {pair.target}"
            raise UserError(f"{benchmark.root}: the pairs {both} have the same id, {pair.id}. Rename an image")
    for image in benchmark.images:
        if image.id.startswith("."):  # such names in a store are not those of images
            raise UserError(f"{benchmark.root}: the name of {image.id} starts with a dot. Rename it")
    index_table(benchmark.pairs, PAIR_SCHEMA)
    index_table(benchmark.images, IMAGE_SCHEMA)


def _each(verify: Callable[[T], R], images: Sequence[T]) -> list[R]:
    """Apply `verify` to each image in parallel, with a progress bar; results are in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(progress(pool.map(verify, images), total=len(images), unit="image", desc="verifying"))


def summary(benchmark: Benchmark) -> str:
    """A dataset's content in one line."""
    keypoints = sum(len(pair.keypoint_ids) for pair in benchmark.pairs)
    line = f"{len(benchmark.images):,} images, {len(benchmark.pairs):,} pairs, {keypoints:,} keypoints"
    return "; ".join([line, *(f"{count:,} {what} left out" for what, count in benchmark.left_out.items())])


def check(spec: DatasetSpec, folder: Path) -> list[str]:
    """Verify every image, annotation and list of pairs of a dataset's folder, and return lines that summarise it.

    Raises:
        UserError: a file is missing or damaged, or contradicts another.
    """
    root = root_of(folder, spec.format)
    module = reader(spec.format)
    lines = module.verify(root, spec)
    wanted, known = set(spec.categories or ()), set()
    for part in module.parts(root, spec):
        benchmark = module.load(root, part.model_copy(update={"categories": None, "part": None}))
        require_tables(benchmark)
        has = {pair.category for pair in benchmark.pairs}
        known |= has
        label = getattr(part, "split", getattr(part, "annotations", "all"))
        if spec.categories and (kept := [name for name in spec.categories if name in has]):
            benchmark = benchmark.only(kept)
            wanted -= set(kept)
        elif spec.categories:
            lines.append(f"{label}: holds none of {', '.join(spec.categories)}")
            continue
        lines.append(f"{label}: {summary(benchmark)}")
    if wanted:
        raise UserError(f"{root}: no split holds pairs of category {min(wanted)}; allowed: {', '.join(sorted(known))}")
    files = module.rest(root)

    def turned(path: Path) -> bool:
        decode(path, upright=False, remedy=AGAIN)
        return stored_orientation(path) != 1

    if count := sum(_each(turned, files)):
        lines.append(
            f"{count:,} images have an EXIF orientation other than 1: their pixels count as they are stored, as "
            f"benchmarks annotate them, and not as viewers rotate them"
        )
    return [f"{root}: format {spec.format}, {len(files):,} image files, each decoded", *lines]


def conclusion(spec: DatasetSpec, folder: Path) -> str:
    """One line on whether `check` verified all that the benchmark has."""
    root = root_of(folder, spec.format)
    missing = reader(spec.format).absent(root)
    if not missing:
        return "All of it was verified."
    return f"The above was verified. Missing, and so not verified: {', '.join(missing)}"


def recognise(folder: Path, expect: str) -> DatasetSpec:
    """Recognise a folder's dataset by its layout.

    Raises:
        UserError: it is in no known format, or `expect` is not valid for its format.
    """
    for name in FORMATS:
        module = reader(name)
        if module.find(folder) is not None:
            values = {"format": name, "sources": [{"kind": "path", "path": str(folder)}], "expect": expect}
            return validate_dataset(values | module.WHOLE)
    raise UserError(f"{folder}: in none of the known formats: {', '.join(FORMATS)}; see docs/datasets.md")
