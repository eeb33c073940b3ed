"""SPair-71k, as its authors publish it (Min et al., 2019): one JSON file a pair, one layout file a split.

JPEGImages/<category>/<image>.jpg, PairAnnotation/<split>/<pair>.json, ImageAnnotation/<category>/<image>.json,
Segmentation/<category>/<image>.png, Layout/<large|small>/<split>.txt. The names src_* and trg_* live in this file only.
"""

import re
from pathlib import Path
from typing import Any

from semcorr.datasets.base import Benchmark, Image, Pair, check_pair, image_size
from semcorr.errors import UserError
from semcorr.files import read_json

LAYOUT_LINE = re.compile(r"(?P<number>\d+)-(?P<source>[^:]+?)-(?P<target>[^:-]+):(?P<category>[^:/\\]+)")
SPLITS = ("trn", "val", "test")


def read(root: Path, split: str, layout: str) -> Benchmark:
    """Read one split.

    Args:
        root: the folder that holds Layout, PairAnnotation and JPEGImages.
        split: trn, val or test.
        layout: large (all pairs) or small.

    Raises:
        UserError: a file is missing or damaged, or contradicts another; the message names it.
    """
    lines = read_layout(root, split, layout)
    sizes: dict[str, tuple[int, int]] = {}
    pairs = [_read_pair(root, split, line, sizes) for line in lines]
    images = [
        Image(id=id_, file=f"{id_}.jpg", category=id_.split("/")[0], height=sizes[id_][0], width=sizes[id_][1])
        for id_ in sorted(sizes)
    ]
    return Benchmark(root=root / "JPEGImages", images=images, pairs=pairs)


def read_layout(root: Path, split: str, layout: str) -> list[str]:
    """The pair names of a split, in order, each once."""
    path = root / "Layout" / layout / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise UserError(f"{path}: the list of pairs is missing; {root} is no folder in SPair-71k's format") from None
    for number, line in enumerate(lines, start=1):
        if not LAYOUT_LINE.fullmatch(line):
            raise UserError(f"{path}:{number}: {line!r} is no pair name (number-source-target:category)")
    if not lines:
        raise UserError(f"{path}: the list of pairs is empty")
    if len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise UserError(f"{path}: pair {twice} stands here twice")
    return lines


def _read_pair(root: Path, split: str, line: str, sizes: dict[str, tuple[int, int]]) -> Pair:
    """Read one annotation; `sizes` collects (height, width) by image id."""
    path = root / "PairAnnotation" / split / f"{line}.json"
    values = read_json(path)
    try:
        pair = _to_pair(values, line)
        for id_, (width, height, *_) in (
            (pair.source, values["src_imsize"]),
            (pair.target, values["trg_imsize"]),
        ):
            if id_ not in sizes:
                sizes[id_] = image_size(root / "JPEGImages" / f"{id_}.jpg")
            if sizes[id_] != (height, width):
                actual = f"{sizes[id_][1]} x {sizes[id_][0]}"
                raise UserError(f"{path}: says that {id_}.jpg has {width} x {height} pixels, but it has {actual}")
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not an annotation of SPair-71k ({error})") from None
    return check_pair(pair, sizes, path)


def _to_pair(values: dict[str, Any], line: str) -> Pair:
    category = values["category"]
    names = [values[key].removesuffix(".jpg") for key in ("src_imname", "trg_imname")]
    if not line.endswith(f"-{names[0]}-{names[1]}:{category}"):
        raise ValueError(f"it is about {names[0]} and {names[1]} of {category}, its name about others")
    return Pair(
        id=line,
        category=category,
        source=f"{category}/{names[0]}",
        target=f"{category}/{names[1]}",
        keypoint_ids=[str(id_) for id_ in values["kps_ids"]],
        source_keypoints=_points(values["src_kps"]),
        target_keypoints=_points(values["trg_kps"]),
        source_bbox=[float(value) for value in values["src_bndbox"]],
        target_bbox=[float(value) for value in values["trg_bndbox"]],
        viewpoint_variation=int(values["viewpoint_variation"]),
        scale_variation=int(values["scale_variation"]),
        truncation=int(values["truncation"]),
        occlusion=int(values["occlusion"]),
        mirror=int(values["mirror"]),
    )


def _points(values: list) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in values]
