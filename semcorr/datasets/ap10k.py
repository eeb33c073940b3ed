"""AP-10K for correspondence: Yu et al.'s animal poses (2021) as paired by Zhang et al. (Telling Left from Right, 2024).

JPEGImages/<family>/<species>/<image>.jpg, ImageAnnotation/<family>/<species>/<image>.json (width, height, bbox as
x y w h, and `keypoints`, 17 times x y visibility), and one JSON per pair, with the two annotations' paths, in
PairAnnotation/<split><suffix>/<source>-<target>:<group>.json. The suffix tells which animals are paired: none for two
of one species, `_cross_species` for one family, `_cross_family` for two. The group is the species, the family, or
`all`; it is taken from the annotations' paths, since file names lose their colon on Windows.
"""

import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from semcorr.artifacts.files import read_json
from semcorr.datasets.annotations import COLONS, understood
from semcorr.datasets.base import (
    Benchmark,
    Image,
    Pair,
    check_image,
    check_pair,
    common_keypoints,
    image_files,
    in_any_case,
    named,
)
from semcorr.datasets.decode import image_size, other_size
from semcorr.datasets.formats import Files
from semcorr.errors import UserError
from semcorr.params import AP10KSpec

WHOLE = {"split": "test", "subset": "intra_species", "categories": None, "limit": None}
KEYPOINTS = 17
SUFFIXES = {"intra_species": "", "cross_species": "_cross_species", "cross_family": "_cross_family"}
SPLITS = ("trn", "val", "test")
PAIR_FILE = re.compile(rf".*/([^/-]+)-([^/]+?)([{''.join(COLONS)}][^/]*)?\.json")


def find(folder: Path) -> Path | None:
    """Find the root of the format: `folder` itself or a folder in it."""
    candidates = (path for path in (folder, *sorted(folder.iterdir())) if (path / "PairAnnotation").is_dir())
    return next((path for path in candidates if next(path.glob("ImageAnnotation/*/*/*.json"), None)), None)


def load(root: Path, spec: AP10KSpec) -> Benchmark:
    """Read the pairs that params.yaml names."""
    return read(root, spec.split, spec.subset).only(spec.categories).within(spec.part)


def listed(files: Files, spec: AP10KSpec) -> list[tuple[str, str]]:
    """The images of each pair, by the name of its file."""
    images = {PurePosixPath(name).stem: name for name in files.names("JPEGImages/*/*/*")}
    names = map(PAIR_FILE.fullmatch, files.names(f"PairAnnotation/{spec.split}{SUFFIXES[spec.subset]}/*.json"))
    pairs = [(images.get(name[1], name[1]), images.get(name[2], name[2])) for name in names if name]
    return [both for both in pairs if spec.categories is None or _listed_group(both[0], spec.subset) in spec.categories]


def _listed_group(image: str, subset: str) -> str:
    """What `_group` says of a pair, by its source's path."""
    family, species = PurePosixPath(image).parts[-3:-1] if image.count("/") > 1 else ("", "")
    return {"intra_species": species, "cross_species": family, "cross_family": "all"}[subset]


def parts(root: Path, spec: AP10KSpec) -> list[AP10KSpec]:
    """All splits and subsets in the folder."""
    return [
        spec.model_copy(update={"split": split, "subset": subset, "limit": None})
        for split in SPLITS
        for subset, suffix in SUFFIXES.items()
        if next((root / "PairAnnotation" / f"{split}{suffix}").glob("*.json"), None)
    ]


def rest(root: Path) -> list[Path]:
    """Every image file; every annotation is read and checked against its image.

    Raises:
        UserError: an annotation is damaged, or has the wrong image size.
    """
    for path in sorted(root.glob("ImageAnnotation/*/*/*.json")):
        _read_annotation(root, path.relative_to(root / "ImageAnnotation").as_posix())
    return [path for folder in sorted(root.glob("JPEGImages/*/*/")) for path in image_files(folder, ".jpg")]


def absent(root: Path) -> list[str]:
    """The folders of pairs that are missing or empty."""
    names = [f"PairAnnotation/{split}{suffix}" for split in SPLITS for suffix in SUFFIXES.values()]
    return [name for name in names if not next((root / name).glob("*.json"), None)]


def verify(root: Path, spec: AP10KSpec) -> list[str]:
    """Count families and species. The pairs are sampled by a script, so no count is required."""
    species = {path.parent for path in root.glob("ImageAnnotation/*/*/*.json")}
    families = {path.parent for path in species}
    return [f"{len(families)} families, {len(species)} species"]


def read(root: Path, split: str, subset: str) -> Benchmark:
    """Read one split of one subset, pairs sorted by name; pairs without common keypoints are skipped and counted.

    Raises:
        UserError: a file is missing or damaged, or contradicts another.
    """
    folder = root / "PairAnnotation" / f"{split}{SUFFIXES[subset]}"
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not files:
        raise UserError(f"{folder}: holds no pairs; {root} is not in AP-10K's correspondence format")
    images: dict[str, Image] = {}
    pairs: dict[tuple[str, str], Pair] = {}
    empty = 0

    @cache
    def animal(relative: str) -> tuple[str, dict[str, list[float]], list[float]]:
        image, points, bbox = _read_annotation(root, relative)
        images[image.id] = image
        return image.id, points, bbox

    for path in files:
        values = read_json(named(path))
        try:
            both = [_below(values[key]) for key in ("src_json_path", "trg_json_path")]
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError(f"{path}: not a pair of AP-10K (src_json_path, trg_json_path)") from None
        (source, first, source_bbox), (target, second, target_bbox) = map(animal, both)
        common = common_keypoints(first, second)
        if not common["keypoint_ids"]:
            empty += 1
            continue
        category = _group(both, subset, path)
        pair = Pair(
            id=f"{source}-{target}:{category}",
            category=category,
            source=source,
            target=target,
            source_bbox=source_bbox,
            target_bbox=target_bbox,
            subset=subset,
            **common,
        )
        if (source, target) in pairs:
            raise UserError(f"{path}: the pair is also in {pairs[source, target].id}.json")
        sizes = {id_: (images[id_].height, images[id_].width) for id_ in (source, target)}
        pairs[source, target] = check_pair(pair, sizes, path)
    used = {id_ for ids in pairs for id_ in ids}
    return Benchmark(
        root=root / "JPEGImages",
        images=[images[id_] for id_ in sorted(used)],
        pairs=list(pairs.values()),
        left_out={"pairs without common keypoints": empty} if empty else {},
    )


def _group(both: list[str], subset: str, path: Path) -> str:
    """What the two animals have in common: the species, the family, or nothing (`all`)."""
    (first_family, first, _), (second_family, second, _) = (name.split("/") for name in both)
    if subset == "intra_species" and (first_family, first) == (second_family, second):
        return first
    if subset == "cross_species" and first_family == second_family and first != second:
        return first_family
    if subset == "cross_family" and first_family != second_family:
        return "all"
    raise UserError(
        f"{path}: pairs {first_family}/{first} with {second_family}/{second}, which is not {subset.replace('_', ' ')}"
    )


def _below(path: str) -> str:
    """An annotation's path below ImageAnnotation; the file has it relative to its author's working folder."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    below = parts[parts.index("ImageAnnotation") + 1 :]
    if len(below) != 3 or ".." in below:
        raise ValueError(path)
    return "/".join(below)


def _read_annotation(root: Path, relative: str) -> tuple[Image, dict[str, list[float]], list[float]]:
    """An image, its visible keypoints (number -> x y), and its animal's box (x0, y0, x1, y1)."""
    path = root / "ImageAnnotation" / relative
    values = read_json(path)
    id_ = relative.removesuffix(".json")
    file = in_any_case(root / "JPEGImages" / f"{id_}.jpg")
    size = image_size(file)
    with understood(path, "an annotation of AP-10K"):
        annotated = (int(values["height"]), int(values["width"]))
        points = _visible(values["keypoints"])
        x, y, width, height = map(float, values["bbox"])
    if annotated != size:
        raise other_size(path, file, annotated, size)
    image = Image(
        id=id_,
        file=f"{id_}{file.suffix}",
        category=id_.split("/")[1],
        height=size[0],
        width=size[1],
        keypoint_ids=list(points),
        keypoints=list(points.values()),
    )
    return check_image(image, path), points, [x, y, x + width, y + height]


def _visible(values: list[Any]) -> dict[str, list[float]]:
    if len(values) != 3 * KEYPOINTS:
        raise ValueError(f"{len(values)} numbers for {KEYPOINTS} keypoints")
    rows = [values[at : at + 3] for at in range(0, len(values), 3)]
    return {str(number): [float(x), float(y)] for number, (x, y, visibility) in enumerate(rows) if visibility > 0}
