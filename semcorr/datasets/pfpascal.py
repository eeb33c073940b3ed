"""PF-PASCAL as published by its authors (Ham et al., Proposal Flow, 2017), with the usual split files.

JPEGImages/<image>.jpg; Annotations/<category>/<image>.mat with `kps` (N x 2, x y, NaN for points that are not visible)
and `bbox` (1 x 4, x0 y0 x1 y1); and, from Rocco et al. (2017) and Han et al. (2017), lists of pairs
{train,val,test}_pairs_pf_pascal.csv (or {trn,val,test}_pairs.csv): source image, target image, 1-based class, and, in
train, whether the row is a mirrored copy. Points are from the .mat files; the lists' coordinates are only checked.
"""

import contextlib
import csv
import re
from functools import cache
from pathlib import Path

import numpy as np

from semcorr.datasets.annotations import read_list, read_mat
from semcorr.datasets.base import (
    Benchmark,
    Image,
    Pair,
    check_image,
    check_pair,
    common_keypoints,
    image_files,
    in_any_case,
)
from semcorr.datasets.decode import image_size
from semcorr.datasets.formats import Files
from semcorr.errors import UserError
from semcorr.params import PFPascalSpec

WHOLE = {"split": "test", "categories": None, "limit": None}
CATEGORIES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
]
CATEGORIES += ["pottedplant", "sheep", "sofa", "train", "tvmonitor"]
LISTS = {
    "trn": ("train_pairs_pf_pascal.csv", "trn_pairs.csv"),
    "val": ("val_pairs_pf_pascal.csv", "val_pairs.csv"),
    "test": ("test_pairs_pf_pascal.csv", "test_pairs.csv"),
}
PAIRS = {"val": 308, "test": 299}  # of PF-PASCAL itself
LIST_TOLERANCE = 1.0  # pixels


def find(folder: Path) -> Path | None:
    """Find the root of the format: `folder` itself or a folder in it."""
    candidates = (folder, *sorted(folder.iterdir()))
    return next((path for path in candidates if next(path.glob("Annotations/*/*.mat"), None)), None)


def load(root: Path, spec: PFPascalSpec) -> Benchmark:
    """Read the split that params.yaml names."""
    return read(root, spec.split).only(spec.categories).within(spec.part)


def listed(files: Files, spec: PFPascalSpec) -> list[tuple[str, str]]:
    """The images of each pair in the list that params.yaml names, without mirrored copies."""
    pairs = []
    for row in csv.reader("\n".join(map(files.text, LISTS[spec.split])).splitlines()):
        with contextlib.suppress(UserError):  # the header
            source, target, category, further = _parse(row, "")
            mirrored = spec.split == "trn" and len(further) == 1 and _is_one(further[0])
            if not mirrored and (spec.categories is None or category in spec.categories):
                pairs.append((f"JPEGImages/{source}.jpg", f"JPEGImages/{target}.jpg"))
    return pairs


def parts(root: Path, spec: PFPascalSpec) -> list[PFPascalSpec]:
    """The dataset's whole splits."""
    return [
        spec.model_copy(update={"split": split, "limit": None})
        for split in LISTS
        if _find_list(root, split) is not None
    ]


def rest(root: Path) -> list[Path]:
    """Every image file; every annotation is read.

    Raises:
        UserError: an annotation is damaged.
    """
    for path in sorted(root.glob("Annotations/*/*.mat")):
        read_annotation(path)
    return image_files(root / "JPEGImages", ".jpg")


def absent(root: Path) -> list[str]:
    """The missing lists of pairs."""
    return [" or ".join(names) for split, names in LISTS.items() if _find_list(root, split) is None]


def verify(root: Path, spec: PFPascalSpec) -> list[str]:
    """Count the pairs of each list; PF-PASCAL itself (`expect: pfpascal`) has three, with 308 in val and 299 in test.

    Raises:
        UserError: the folder is expected to be PF-PASCAL, but is not.
    """
    if spec.expect == "pfpascal" and (missing := absent(root)):
        raise UserError(
            f"{root}: holds no {', no '.join(missing)}, which PF-PASCAL has. Get the usual lists of pairs, or set "
            f"`expect: any` if the data are your own"
        )
    counts = {part.split: len(read_list(_list(root, part.split))) for part in parts(root, spec)}
    wrong = {split: count for split, count in counts.items() if count != PAIRS.get(split, count)}
    if spec.expect == "pfpascal" and wrong:
        raise UserError(
            f"{root}: pairs {wrong}, PF-PASCAL has {PAIRS}. Get the lists again, or set `expect: any` if the data are "
            f"your own"
        )
    listed = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    return [f"pairs listed: {listed or 'none'}"]


def read(root: Path, split: str) -> Benchmark:
    """Read one split; rows that are mirrored copies of others are skipped and counted.

    Raises:
        UserError: a file is missing or damaged, or contradicts another.
    """
    path = _list(root, split)
    sizes: dict[str, tuple[int, int]] = {}
    categories: dict[str, set[str]] = {}
    files: dict[str, Path] = {}
    pairs: dict[tuple[str, str, str], Pair] = {}
    mirrored = 0

    @cache
    def annotation(category: str, name: str) -> tuple[dict[str, list[float]], list[float]]:
        return read_annotation(root / "Annotations" / category / f"{name}.mat")

    for number, row in read_list(path):
        where = f"{path}:{number}"
        source, target, category, further = _parse(row, where)
        if split == "trn" and len(further) == 1 and _is_one(further[0]):
            mirrored += 1
            continue
        for name in (source, target):
            if name not in sizes:
                files[name] = in_any_case(root / "JPEGImages" / f"{name}.jpg")
                sizes[name] = image_size(files[name])
            categories.setdefault(name, set()).add(category)
        (first, source_bbox), (second, target_bbox) = annotation(category, source), annotation(category, target)
        pair = Pair(
            id=f"{source}-{target}:{category}",
            category=category,
            source=source,
            target=target,
            source_bbox=source_bbox,
            target_bbox=target_bbox,
            **common_keypoints(first, second),
        )
        if (source, target, category) in pairs:
            raise UserError(f"{where}: pair {source}, {target} is listed twice")
        if len(further) == 4:
            _compare(where, further, pair)
        pairs[source, target, category] = check_pair(pair, sizes, where)
    images = []
    for name, (height, width) in sorted(sizes.items()):
        # What an image with objects of two categories shows depends on the pair, so nothing is said of it.
        points = annotation(*categories[name], name)[0] if len(categories[name]) == 1 else {}
        image = Image(
            id=name,
            file=files[name].name,
            category=min(categories[name]),
            height=height,
            width=width,
            keypoint_ids=list(points),
            keypoints=list(points.values()),
        )
        images.append(check_image(image, files[name]))
    left_out = {"mirrored copies": mirrored} if mirrored else {}
    return Benchmark(root=root / "JPEGImages", images=images, pairs=list(pairs.values()), left_out=left_out)


def read_annotation(path: Path) -> tuple[dict[str, list[float]], list[float]]:
    """Visible keypoints (number -> x y) and the box (x0, y0, x1, y1) of a .mat file."""
    points, bbox = read_mat(path, "kps", "bbox")
    bbox = bbox.ravel()
    if points.ndim != 2 or points.shape[1] != 2 or bbox.shape != (4,):
        raise UserError(f"{path}: kps is {points.shape}, bbox {bbox.shape}, expected (N, 2) and (4,)")
    visible = np.isfinite(points).all(axis=1)
    return {str(number): points[number].tolist() for number in np.flatnonzero(visible)}, bbox.tolist()


def _find_list(root: Path, split: str) -> Path | None:
    return next((root / name for name in LISTS[split] if (root / name).exists()), None)


def _list(root: Path, split: str) -> Path:
    if (path := _find_list(root, split)) is not None:
        return path
    raise UserError(f"{root}: holds neither {' nor '.join(LISTS[split])}, the list of {split} pairs")


def _parse(row: list[str], where: str) -> tuple[str, str, str, list[str]]:
    """Source, target, category and the other columns of a row."""
    try:
        source, target = (re.sub(r"\.jpg$", "", name.split("/")[-1], flags=re.IGNORECASE) for name in row[:2])
        number = int(float(row[2]))
        if not 1 <= number <= len(CATEGORIES) or number != float(row[2]):
            raise ValueError(f"class {row[2]}")
    except (ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{where}: not source image, target image, class 1 to {len(CATEGORIES)} ({error})") from None
    return source, target, CATEGORIES[number - 1], row[3:]


def _is_one(cell: str) -> bool:
    try:
        return float(cell) == 1
    except ValueError:
        return False


def _compare(where: str, columns: list[str], pair: Pair) -> None:
    """Refuse a row whose coordinates, `x;x;...` and `y;y;...` of both images, differ from those of the .mat files."""
    for side, x, y in (("source", *columns[:2]), ("target", *columns[2:])):
        try:
            listed = np.array([x.split(";"), y.split(";")], float).T
        except ValueError as error:
            raise UserError(f"{where}: not a list of numbers ({error})") from None
        ours = pair.points(side)
        if listed.shape != ours.shape or not (np.abs(listed - ours) <= LIST_TOLERANCE).all():
            raise UserError(f"{where}: {side} keypoints differ from those of the .mat file")
