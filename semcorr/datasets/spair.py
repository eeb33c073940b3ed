"""SPair-71k, as its authors publish it (Min et al., 2019): one JSON file a pair, one layout file a split.

JPEGImages/<category>/<image>.jpg, PairAnnotation/<split>/<pair>.json, ImageAnnotation/<category>/<image>.json,
Segmentation/<category>/<image>.png, Layout/<large|small>/<split>.txt. The names src_* and trg_* live in this file only.
"""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from semcorr.artifacts.files import read_json
from semcorr.datasets.annotations import COLONS, code, understood
from semcorr.datasets.base import Benchmark, Image, Pair, check_pair, image_files, in_any_case
from semcorr.datasets.decode import decode_labels, image_size, other_size
from semcorr.errors import UserError
from semcorr.params import SPairSpec

LAYOUT_LINE = re.compile(r"(\d+)-([^:/\\-]+)-([^:/\\-]+):([^:/\\.][^:/\\]*)")
WHOLE = {"split": "test", "layout": "large", "limit": None}
SPLITS = ("trn", "val", "test")
AZIMUTHS = 7  # the last of eight directions
LAYOUTS = ("large", "small")
PAIRS = {  # of SPair-71k itself
    "large": {"trn": 53_340, "val": 5_384, "test": 12_234},
    "small": {"trn": 10_652, "val": 1_070, "test": 2_438},
}
CATEGORIES, IMAGES_PER_CATEGORY = 18, 100


def find(folder: Path) -> Path | None:
    """The root of the format: `folder` itself or a folder in it."""
    return next((path for path in (folder, *sorted(folder.iterdir())) if (path / "Layout").is_dir()), None)


def load(root: Path, spec: SPairSpec) -> Benchmark:
    """Read the split that params.yaml names."""
    return read(root, spec.split, spec.layout)


def parts(root: Path, spec: SPairSpec) -> list[SPairSpec]:
    """The dataset's whole splits, which together are the folder; by the small lists where there are no large ones."""
    layouts = {split: next((one for one in LAYOUTS if _layout(root, split, one).exists()), None) for split in SPLITS}
    return [
        spec.model_copy(update={"split": split, "layout": layout, "limit": None})
        for split, layout in layouts.items()
        if layout
    ]


def rest(root: Path) -> list[Path]:
    """Every image file; each one's annotation, where there is one, is read and held against it.

    Raises:
        UserError: an annotation is damaged, or about an image of another size.
    """
    files = _image_files(root)
    for path in files:
        read_image(root, f"{path.parent.name}/{path.stem}", image_size(path))
    return files


def absent(root: Path) -> list[str]:
    """What SPair-71k has and this folder has not."""
    lists = [_layout(root, split, layout) for layout in LAYOUTS for split in SPLITS]
    folders = [root / name for name in ("ImageAnnotation", "Segmentation")]
    return [str(path.relative_to(root)) for path in (*lists, *folders) if not path.exists()]


def verify(root: Path, spec: SPairSpec) -> list[str]:
    """Check what one split cannot show: all lists of pairs against each other, and that every image has its files.

    Returns:
        Lines that say what is there.

    Raises:
        UserError: a list is not what SPair-71k has (`expect: spair71k`), the small one is not part of the large one,
            two splits share an image, or an image has no annotation or no mask.
    """
    strict = spec.expect == "spair71k"
    lists = {
        (layout, split): read_layout(root, split, layout)
        for layout in LAYOUTS
        for split in SPLITS
        if strict or _layout(root, split, layout).exists()
    }
    report = []
    for layout in LAYOUTS:
        counts = {split: len(lists[layout, split]) for split in SPLITS if (layout, split) in lists}
        if strict and counts != PAIRS[layout]:
            raise UserError(f"{root / 'Layout' / layout}: pairs {counts}, SPair-71k has {PAIRS[layout]}{_custom(spec)}")
        report.append(f"{layout}: " + (", ".join(f"{split} {count:,}" for split, count in counts.items()) or "no list"))
    images: dict[str, set[str]] = {split: set() for split in SPLITS}
    for (layout, split), lines in lists.items():
        strangers = set(lines) - set(lists.get(("large", split), lines))
        if layout == "small" and strangers:
            path = _layout(root, split, "small")
            raise UserError(f"{path}: {min(strangers)} is not in the large list, of which the small one is part")
        for line in lines:
            _, source, target, category = _parse(line)
            images[split] |= {f"{category}/{source}", f"{category}/{target}"}
    for one, other in combinations(SPLITS, 2):
        if shared := images[one] & images[other]:
            raise UserError(f"{root / 'Layout'}: image {min(shared)} is in {one} and in {other}; splits share no image")
    return [*report, _verify_files(root, set().union(*images.values()), spec)]


def _verify_files(root: Path, used: set[str], spec: SPairSpec) -> str:
    """Check that each image has its annotation and its mask, and count them by category."""
    strict = spec.expect == "spair71k"
    files = _image_files(root)
    known = {f"{path.parent.name}/{path.stem}" for path in files}
    if missing := used - known:
        raise UserError(f"{root / 'JPEGImages' / min(missing)}.jpg: the image is missing. Get the dataset again")
    found = {}
    for folder, suffix in (("ImageAnnotation", "json"), ("Segmentation", "png")):
        there = {name for name in known if in_any_case(root / folder / f"{name}.{suffix}").is_file()}
        if len(there) < len(known) and (strict or there):
            path = root / folder / f"{min(known - there)}.{suffix}"
            raise UserError(f"{path}: is missing, its image is there. Get the dataset again")
        found[folder] = len(there)
    for name in sorted(known) if found["Segmentation"] else ():
        read_mask(root, name, image_size(_image_file(root, name)))
    counts = Counter(path.parent.name for path in files)
    if strict and list(counts.values()) != [IMAGES_PER_CATEGORY] * CATEGORIES:
        expected = f"{CATEGORIES} categories of {IMAGES_PER_CATEGORY} images"
        raise UserError(f"{root / 'JPEGImages'}: SPair-71k has {expected}, this has {dict(counts)}{_custom(spec)}")
    return (
        f"{len(counts)} categories, {len(known):,} images, {found['ImageAnnotation']:,} annotations, "
        f"{found['Segmentation']:,} masks"
    )


def _layout(root: Path, split: str, layout: str) -> Path:
    return root / "Layout" / layout / f"{split}.txt"


def _image_files(root: Path) -> list[Path]:
    return [path for folder in sorted(root.glob("JPEGImages/*/")) for path in image_files(folder, ".jpg")]


def _image_file(root: Path, image_id: str) -> Path:
    return in_any_case(root / "JPEGImages" / f"{image_id}.jpg")


def _custom(spec: SPairSpec) -> str:
    return ". Get it again, or say `expect: any` if it is data of your own"


def read_mask(root: Path, image_id: str, size: tuple[int, int]) -> PillowImage.Image:
    """The segmentation mask of an image of this (height, width), wholly decoded.

    Raises:
        UserError: it is missing or damaged, or has another size.
    """
    path = in_any_case(root / "Segmentation" / f"{image_id}.png")
    mask = decode_labels(path)
    if (mask.height, mask.width) != size:
        raise UserError(f"{path}: the mask has another size than its image, {size[1]} x {size[0]}")
    return mask


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
    pairs = [read_pair(root, split, line, sizes) for line in lines]
    images = [read_image(root, id_, sizes[id_]) for id_ in sorted(sizes)]
    return Benchmark(root=root / "JPEGImages", images=images, pairs=pairs)


def read_image(root: Path, image_id: str, size: tuple[int, int]) -> Image:
    """What the folder says about an image of this (height, width).

    Raises:
        UserError: its annotation is damaged, or says another size.
    """
    annotation = read_image_annotation(root, image_id)
    path = root / "ImageAnnotation" / f"{image_id}.json"
    pose = azimuth = None
    if annotation is not None:
        with understood(path, "an image annotation of SPair-71k"):
            said = (int(annotation["image_height"]), int(annotation["image_width"]))
            pose, azimuth = str(annotation["pose"]), code(annotation["azimuth_id"], AZIMUTHS)
        if said != size:
            raise other_size(path, _image_file(root, image_id), said, size)
    category = image_id.split("/")[0]
    height, width = size
    file = _image_file(root, image_id).relative_to(root / "JPEGImages").as_posix()
    return Image(id=image_id, file=file, category=category, height=height, width=width, pose=pose, azimuth=azimuth)


def read_layout(root: Path, split: str, layout: str) -> list[str]:
    """The pair names of a split, in order, each once."""
    path = _layout(root, split, layout)
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise UserError(f"{path}: the list of pairs is missing; {root} is no folder in SPair-71k's format") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text ({error}). Get the dataset again") from None
    for number, line in enumerate(lines, start=1):
        if not LAYOUT_LINE.fullmatch(line):
            raise UserError(f"{path}:{number}: {line!r} is no pair name (number-source-target:category)")
    if not lines:
        raise UserError(f"{path}: the list of pairs is empty")
    seen: dict[tuple[str, ...], str] = {}
    for line in lines:
        if (other := seen.setdefault(_parse(line)[1:], line)) is not line:
            raise UserError(f"{path}: pair {line} stands here twice" + (f" (as {other})" if other != line else ""))
    return lines


def _parse(line: str) -> tuple[str, ...]:
    """Number, source, target and category of a pair name."""
    return LAYOUT_LINE.fullmatch(line).groups()


def read_image_annotation(root: Path, image_id: str) -> dict[str, Any] | None:
    """ImageAnnotation of an image, as it is on file, or None where the folder has none.

    Its keys: filename, image_width, image_height, category, pose, azimuth_id, truncated, occluded, difficult, bndbox
    (x0, y0, x1, y1), kps (number -> x y, or None where it is not visible), and where the picture came from.
    """
    path = root / "ImageAnnotation" / f"{image_id}.json"
    return read_json(path) if path.exists() else None


def read_pair(root: Path, split: str, line: str, sizes: dict[str, tuple[int, int]]) -> Pair:
    """Read the annotation of one line of a layout; `sizes` collects (height, width) by image id.

    Raises:
        UserError: it is missing or damaged, or its images are; the message names the file.
    """
    path = _pair_file(root / "PairAnnotation" / split, line)
    values = read_json(path)
    with understood(path, "an annotation of SPair-71k"):
        pair = _to_pair(values, line)
        for id_, (width, height, *_) in (
            (pair.source, values["src_imsize"]),
            (pair.target, values["trg_imsize"]),
        ):
            if id_ not in sizes:
                sizes[id_] = image_size(_image_file(root, id_))
            if sizes[id_] != (height, width):
                raise other_size(path, _image_file(root, id_), (height, width), sizes[id_])
    return check_pair(pair, sizes, path)


def _pair_file(folder: Path, line: str) -> Path:
    """A pair's annotation; Windows allows no colon in a name, so that unpackers there write something else."""
    names = [f"{line.replace(':', instead)}.json" for instead in COLONS]
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _to_pair(values: dict[str, Any], line: str) -> Pair:
    category = values["category"]
    names = [re.sub(r"\.jpg$", "", values[key], flags=re.IGNORECASE) for key in ("src_imname", "trg_imname")]
    if not line.endswith(f"-{names[0]}-{names[1]}:{category}"):
        raise ValueError(f"it is about {names[0]} and {names[1]} of {category}, its name about others")
    return Pair(
        id=line,
        category=category,
        source=f"{category}/{names[0]}",
        target=f"{category}/{names[1]}",
        keypoint_ids=[_keypoint_id(id_) for id_ in values["kps_ids"]],
        source_keypoints=_points(values["src_kps"]),
        target_keypoints=_points(values["trg_kps"]),
        source_bbox=_box(values["src_bndbox"]),
        target_bbox=_box(values["trg_bndbox"]),
        viewpoint_variation=code(values["viewpoint_variation"], 2),
        scale_variation=code(values["scale_variation"], 2),
        truncation=code(values["truncation"], 3),
        occlusion=code(values["occlusion"], 3),
        mirror=code(values["mirror"], 1),
    )


def _keypoint_id(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is no keypoint's number")
    return str(value)


def _points(values: list) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in values]


def _box(values: list) -> list[float]:
    x0, y0, x1, y1 = map(float, values)
    return [x0, y0, x1, y1]
