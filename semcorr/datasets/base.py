"""Benchmarks of any format as images and annotated pairs, and their index on disk.

Keypoints are (x, y) in pixels of the original image; (0, 0) is the centre of its top-left pixel. A pair lists only the
keypoints that are annotated in both images.
"""

import hashlib
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PillowImage

from semcorr.artifacts import provenance
from semcorr.datasets.decode import decode
from semcorr.errors import UserError
from semcorr.params import Part


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a benchmark.

    Attributes:
        id: its name in pairs and stores; unique in the dataset.
        file: its path below the folder that holds the images.
        height, width: pixels.
        pose: the object's, in the benchmark's words; None if unknown.
        azimuth: the object's, as numbered by the benchmark.
        keypoint_ids: names of all its annotated keypoints, also of those that it shares with no other image.
        keypoints: (N, 2), x y.
        mask: of the object, a PNG of one bit per pixel (`semcorr.datasets.masks`); None if there is none.
        sha256: of the file's bytes; set when it is fetched.
    """

    id: str
    file: str
    category: str
    height: int
    width: int
    pose: str | None = None
    azimuth: int | None = None
    keypoint_ids: list[str] = field(default_factory=list)
    keypoints: list[list[float]] = field(default_factory=list)
    mask: bytes | None = field(default=None, repr=False)
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images of one category and their N common keypoints; None for what a benchmark does not provide.

    Attributes:
        source, target: image ids. Keypoints are given in the source and predicted in the target.
        keypoint_ids: N names; the same name is the same semantic point in every image of the category.
        source_keypoints, target_keypoints: (N, 2), x y.
        source_bbox, target_bbox: object box (x0, y0, x1, y1).
        viewpoint_variation, scale_variation: 0 easy, 1 medium, 2 hard.
        truncation, occlusion: 0 none, 1 source, 2 target, 3 both.
        mirror: 1 if the objects face opposite ways.
        subset: the part of the benchmark that the pair belongs to.
    """

    id: str
    category: str
    source: str
    target: str
    keypoint_ids: list[str]
    source_keypoints: list[list[float]]
    target_keypoints: list[list[float]]
    source_bbox: list[float] | None = None
    target_bbox: list[float] | None = None
    viewpoint_variation: int | None = None
    scale_variation: int | None = None
    truncation: int | None = None
    occlusion: int | None = None
    mirror: int | None = None
    subset: str | None = None

    def points(self, side: str) -> np.ndarray:
        """The keypoints (N, 2), x y, of the "source" or the "target"."""
        return np.array(getattr(self, f"{side}_keypoints"), float).reshape(-1, 2)


class NoSuchCategory(UserError):
    """A benchmark holds no pairs of a category."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Images and pairs, in the benchmark's own order, below `root`.

    Attributes:
        left_out: what was skipped, for instance pairs without keypoints -> how many.
    """

    root: Path
    images: list[Image]
    pairs: list[Pair] = field(repr=False)
    left_out: dict[str, int] = field(default_factory=dict)

    def first(self, limit: int | None) -> "Benchmark":
        """The first `limit` pairs and the images they use; all if `limit` is None."""
        if limit is None or limit >= len(self.pairs):
            return self
        return self._with(self.pairs[:limit], "pairs beyond `limit`")

    def only(self, categories: Sequence[str] | None) -> "Benchmark":
        """The pairs of these categories and the images they use; all if `categories` is None.

        Raises:
            NoSuchCategory: it holds none of one of them.
        """
        if categories is None:
            return self
        known = {pair.category for pair in self.pairs}
        if strangers := [name for name in categories if name not in known]:
            has = ", ".join(sorted(known))
            raise NoSuchCategory(f"{self.root}: holds no pairs of category {strangers[0]}; it has {has}")
        return self._with([pair for pair in self.pairs if pair.category in categories], "pairs of other categories")

    def within(self, part: Part | None) -> "Benchmark":
        """The pairs within a seeded part of the images, or within the rest; all if `part` is None."""
        if part is None:
            return self
        kept = {image.id for image in self.images if in_part(image.file, part)}
        pairs = [pair for pair in self.pairs if pair.source in kept and pair.target in kept]
        return self._with(pairs, "pairs outside `part`")

    def _with(self, pairs: list[Pair], why: str) -> "Benchmark":
        """These pairs and the images they use; the others are counted as left out."""
        used = {pair.source for pair in pairs} | {pair.target for pair in pairs}
        images = [image for image in self.images if image.id in used]
        rest = len(self.pairs) - len(pairs)
        left_out = self.left_out | ({why: rest} if rest else {})
        return Benchmark(root=self.root, images=images, pairs=pairs, left_out=left_out)


def in_part(file: str, part: Part | None) -> bool:
    """Whether an image file, or what it shows, is in a part.

    Each is drawn by itself, from the seed and its path without suffix, so that it does not matter which others there
    are, and all objects of one image are in the same part.
    """
    if part is None:
        return True
    return (drawn(part.seed, str(PurePosixPath(file).with_suffix(""))) < part.fraction) == (part.keep == "part")


def drawn(seed: int, name: str) -> float:
    """A number from 0 to 1 that is a name's own, whatever other names there are."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 256**7


_KINDS: dict[Any, pa.DataType] = {  # type of a field -> of its column
    str: pa.string(),
    str | None: pa.string(),
    int: pa.int32(),
    int | None: pa.int8(),  # codes
    bytes | None: pa.binary(),
    list[str]: pa.list_(pa.string()),
    list[list[float]]: pa.list_(pa.list_(pa.float64(), 2)),
    # Four values; not of fixed size, since pyarrow before 26 cannot read that with nulls.
    list[float] | None: pa.list_(pa.float64()),
}
IMAGE_SCHEMA, PAIR_SCHEMA = (pa.schema({f.name: _KINDS[f.type] for f in fields(row)}) for row in (Image, Pair))


def index_table(rows: Sequence[Image | Pair], schema: pa.Schema) -> pa.Table:
    """Images or pairs as a table.

    Raises:
        UserError: a name is not UTF-8, or a number does not fit; the message names the row.
    """
    try:
        columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in schema.names]
        return pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        if len(rows) == 1:
            raise UserError(f"{shown(rows[0].id)}: does not fit into an index ({error})") from None
    for row in rows:  # to name the row
        index_table([row], schema)
    raise AssertionError("each row fits alone, but not all together")


def write_index(path: Path, rows: Sequence[Image | Pair], schema: pa.Schema, record: dict[str, Any]) -> None:
    """Write images or pairs as Parquet, with the provenance `record`."""
    provenance.write_table(path, index_table(rows, schema), record)


def shown(path: Path | str) -> str:
    """A file's name in printable form, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def named(path: Path) -> Path:
    """Return the path of a file, whose name must be valid in an index.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{shown(path)}: its name is not UTF-8, so no index can hold it. Rename it") from None
    return path


def in_any_case(path: Path) -> Path:
    """A file by its name, or with its suffix in another case, as cameras and Windows write it (.JPG, .PNG)."""
    if path.exists():
        return path
    variants = [path.with_suffix(suffix) for suffix in (path.suffix.upper(), path.suffix.title())]
    return next((variant for variant in variants if variant.exists()), path)


def image_files(folder: Path, suffix: str) -> list[Path]:
    """The image files of a folder with a suffix in lower or upper case, sorted, without hidden ones.

    Raises:
        UserError: a name is not UTF-8.
    """
    paths = [path for path in folder.iterdir() if path.suffix.lower() == suffix] if folder.is_dir() else []
    return sorted(named(path) for path in paths if not path.name.startswith("."))


def read_images(path: Path) -> list[Image]:
    """The images of an index, in its order."""
    return [Image(**row) for row in _read_rows(path, IMAGE_SCHEMA)]


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of an index, in its order."""
    return [Pair(**row) for row in _read_rows(path, PAIR_SCHEMA)]


def _read_rows(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    table = provenance.read_table(path)
    if not table.schema.equals(schema):
        raise UserError(f"{path}: its columns are {table.schema.names}, expected {schema.names}. Fetch it again")
    return table.to_pylist()


def read_image(folder: Path, image: Image) -> PillowImage.Image:
    """Decode one image, after checking that its bytes are those that were fetched.

    Raises:
        UserError: it is missing, damaged or changed.
    """
    path, remedy = folder / image.file, f"Run: dvc repro (or delete {folder.parent})"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: the image is missing. {remedy}") from None
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise UserError(f"{path}: changed since it was fetched. {remedy}")
    return decode(io.BytesIO(content), upright=False, name=path, remedy=remedy)


def common_keypoints(first: dict[str, list[float]], second: dict[str, list[float]]) -> dict[str, Any]:
    """The fields of Pair for the keypoints visible in both images, given number -> x y for each."""
    common = [id_ for id_ in first if id_ in second]
    return {
        "keypoint_ids": common,
        "source_keypoints": [first[id_] for id_ in common],
        "target_keypoints": [second[id_] for id_ in common],
    }


def shared_keypoints(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """The fields of Image for each image's keypoints, as far as pairs list them."""
    found: dict[str, dict[str, list[float]]] = {}
    for pair in pairs:
        for id_, points in ((pair.source, pair.source_keypoints), (pair.target, pair.target_keypoints)):
            found.setdefault(id_, {}).update(zip(pair.keypoint_ids, points, strict=True))
    return {id_: {"keypoint_ids": list(points), "keypoints": list(points.values())} for id_, points in found.items()}


def check_image(image: Image, where: Path | str) -> Image:
    """Return `image` if its keypoints are valid.

    Raises:
        UserError: a name occurs twice, or a point lies outside the image; `where` names the annotation.
    """
    if len(set(image.keypoint_ids)) < len(image.keypoint_ids):
        raise UserError(f"{where}: a keypoint is annotated twice: {image.keypoint_ids}")
    _check_points(image.keypoints, (image.height, image.width), where, "")
    return image


def _check_points(points: list[list[float]], size: tuple[int, int], where: Path | str, side: str) -> None:
    height, width = size
    for x, y in points:
        # Annotations count from 0 or from 1, so a point may lie on the image's far edge. NaN is outside too.
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"{where}: {side}keypoint {[x, y]} is outside the image of {width} x {height} pixels")


def check_pair(pair: Pair, sizes: dict[str, tuple[int, int]], where: Path | str) -> Pair:
    """Return `pair` if its keypoints and boxes are valid for images of these sizes.

    Raises:
        UserError: counts differ, a point lies outside its image, or a box is empty; `where` names the annotation.
    """
    counts = len(pair.source_keypoints), len(pair.target_keypoints), len(pair.keypoint_ids)
    if len(set(counts)) > 1:
        raise UserError(f"{where}: {counts[0]} source keypoints, {counts[1]} target keypoints, {counts[2]} ids")
    if pair.source == pair.target:
        raise UserError(f"{where}: pairs {pair.source} with itself. Remove it")
    sides = (
        ("source", pair.source, pair.source_keypoints, pair.source_bbox),
        ("target", pair.target, pair.target_keypoints, pair.target_bbox),
    )
    for side, image_id, points, bbox in sides:
        _check_points(points, sizes[image_id], where, f"{side} ")
        if bbox is not None and not all(map(math.isfinite, bbox)):
            raise UserError(f"{where}: {side} box {bbox} has values that are not finite (x0, y0, x1, y1)")
        if bbox is not None and not (bbox[2] > bbox[0] and bbox[3] > bbox[1]):
            raise UserError(f"{where}: {side} box {bbox} has no area (x0, y0, x1, y1)")
    return pair
