"""SPair-71k as published by its authors (Min et al., 2019): one JSON file per pair, one layout file per split.

JPEGImages/<category>/<image>.jpg, PairAnnotation/<split>/<pair>.json, ImageAnnotation/<category>/<image>.json,
Segmentation/<category>/<image>.png, Layout/<large|small>/<split>.txt. Only this module uses the names src_* and trg_*.
"""

import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from semcorr.artifacts.files import project_path, read_json
from semcorr.datasets import masks
from semcorr.datasets.annotations import COLONS, code, understood
from semcorr.datasets.base import (
    Benchmark,
    Image,
    Pair,
    check_image,
    check_pair,
    image_files,
    in_any_case,
    shared_keypoints,
)
from semcorr.datasets.decode import decode_labels, image_size, other_size
from semcorr.datasets.formats import Files
from semcorr.errors import UserError
from semcorr.params import SPairSpec

LAYOUT_LINE = re.compile(r"(\d+)-([^:/\\-]+)-([^:/\\-]+):([^:/\\.][^:/\\]*)")
WHOLE = {"split": "test", "layout": "large", "categories": None, "limit": None}
SPLITS = ("trn", "val", "test")
AZIMUTHS = 7  # the last of eight directions
LAYOUTS = ("large", "small")
PAIRS = {  # of SPair-71k itself
    "large": {"trn": 53_340, "val": 5_384, "test": 12_234},
    "small": {"trn": 10_652, "val": 1_070, "test": 2_438},
}
CATEGORIES, IMAGES_PER_CATEGORY = 18, 100


def find(folder: Path) -> Path | None:
    """Find the root of the format: `folder` itself or a folder in it."""
    return next((path for path in (folder, *sorted(folder.iterdir())) if (path / "Layout").is_dir()), None)


def load(root: Path, spec: SPairSpec) -> Benchmark:
    """Read the split that params.yaml names, with other annotations if it names them."""
    annotations = root if spec.annotations is None else project_path(spec.annotations)
    if spec.annotations is not None and not (annotations / "PairAnnotation").is_dir():
        raise UserError(
            f"{annotations}: `annotations`: holds no PairAnnotation; it must be a folder like SPair-71k's own"
        )
    return read(annotations, spec.split, spec.layout, images=root).only(spec.categories).within(spec.part)


def listed(files: Files, spec: SPairSpec) -> list[tuple[str, str]]:
    """The images of each pair in the list that params.yaml names."""
    names = map(LAYOUT_LINE.fullmatch, files.text(f"Layout/{spec.layout}/{spec.split}.txt").split())
    return [
        (f"JPEGImages/{name[4]}/{name[2]}.jpg", f"JPEGImages/{name[4]}/{name[3]}.jpg")
        for name in names
        if name and (spec.categories is None or name[4] in spec.categories)
    ]


def parts(root: Path, spec: SPairSpec) -> list[SPairSpec]:
    """The dataset's whole splits, which together are the folder; by the small list if a split has no large one."""
    layouts = {split: [name for name in LAYOUTS if _layout(root, split, name).exists()] for split in SPLITS}
    return [
        spec.model_copy(update={"split": split, "layout": names[0], "limit": None})
        for split, names in layouts.items()
        if names
    ]


def rest(root: Path) -> list[Path]:
    """Every image file; each one's annotation, if it has one, is read and checked against it.

    Raises:
        UserError: an annotation is damaged, or has the wrong image size.
    """
    files = _image_files(root)
    for path in files:
        read_image(root, f"{path.parent.name}/{path.stem}", image_size(path))
    return files


def absent(root: Path) -> list[str]:
    """What SPair-71k has and this folder lacks."""
    lists = [_layout(root, split, layout) for layout in LAYOUTS for split in SPLITS]
    folders = [root / name for name in ("ImageAnnotation", "Segmentation")]
    return [str(path.relative_to(root)) for path in (*lists, *folders) if not path.exists()]


def verify(root: Path, spec: SPairSpec) -> list[str]:
    """Check what no single split can show: all lists of pairs against each other, and that every image has its files.

    Returns:
        Lines that summarise the folder.

    Raises:
        UserError: a list differs from SPair-71k's (`expect: spair71k`), the small one is not part of the large one,
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
    for first, second in combinations(SPLITS, 2):
        if shared := images[first] & images[second]:
            raise UserError(f"{root / 'Layout'}: image {min(shared)} is in both {first} and {second}")
    return [*report, _verify_files(root, set().union(*images.values()), spec)]


def _verify_files(root: Path, used: set[str], spec: SPairSpec) -> str:
    """Check that each image has its annotation and mask, and count them by category."""
    strict = spec.expect == "spair71k"
    files = _image_files(root)
    known = {f"{path.parent.name}/{path.stem}" for path in files}
    if missing := used - known:
        raise UserError(f"{root / 'JPEGImages' / min(missing)}.jpg: the image is missing. Get the dataset again")
    present = {}
    for folder, suffix in (("ImageAnnotation", "json"), ("Segmentation", "png")):
        names = {name for name in known if in_any_case(root / folder / f"{name}.{suffix}").is_file()}
        if len(names) < len(known) and (strict or names):
            path = root / folder / f"{min(known - names)}.{suffix}"
            raise UserError(f"{path}: is missing, its image exists. Get the dataset again")
        present[folder] = len(names)
    for name in sorted(known) if present["Segmentation"] else ():
        read_mask(root, name, image_size(_image_file(root, name)))
    counts = Counter(path.parent.name for path in files)
    if strict and list(counts.values()) != [IMAGES_PER_CATEGORY] * CATEGORIES:
        expected = f"{CATEGORIES} categories of {IMAGES_PER_CATEGORY} images"
        raise UserError(f"{root / 'JPEGImages'}: SPair-71k has {expected}, this has {dict(counts)}{_custom(spec)}")
    return (
        f"{len(counts)} categories, {len(known):,} images, {present['ImageAnnotation']:,} annotations, "
        f"{present['Segmentation']:,} masks"
    )


def _layout(root: Path, split: str, layout: str) -> Path:
    return root / "Layout" / layout / f"{split}.txt"


def _image_files(root: Path) -> list[Path]:
    return [path for folder in sorted(root.glob("JPEGImages/*/")) for path in image_files(folder, ".jpg")]


def _image_file(root: Path, image_id: str) -> Path:
    return in_any_case(root / "JPEGImages" / f"{image_id}.jpg")


def _custom(spec: SPairSpec) -> str:
    return ". Get it again, or set `expect: any` if the data are your own"


def read_mask(root: Path, image_id: str, size: tuple[int, int]) -> PillowImage.Image:
    """Decode the segmentation mask of an image of this (height, width).

    Raises:
        UserError: it is missing or damaged, or has the wrong size.
    """
    path = in_any_case(root / "Segmentation" / f"{image_id}.png")
    mask = decode_labels(path)
    if (mask.height, mask.width) != size:
        raise UserError(f"{path}: the mask has another size than its image, {size[1]} x {size[0]}")
    return mask


def read(root: Path, split: str, layout: str, images: Path | None = None) -> Benchmark:
    """Read one split.

    Args:
        root: the folder that holds Layout, PairAnnotation and JPEGImages.
        split: trn, val or test.
        layout: large (all pairs) or small.
        images: the folder that holds JPEGImages, if that is another one, as for SPair-U. If `root` then has no lists,
            its pairs are those that it has annotations of.

    Raises:
        UserError: a file is missing or damaged, or contradicts another.
    """
    folder = images or root
    own = folder == root or (root / "Layout").is_dir()
    lines = read_layout(root, split, layout) if own else _annotated(root, split)
    sizes: dict[str, tuple[int, int]] = {}
    pairs = [read_pair(root, split, line, sizes, folder) for line in lines]
    found = [read_image(root, id_, sizes[id_], folder) for id_ in sorted(sizes)]
    if not all(image.keypoint_ids for image in found):  # without ImageAnnotation, what pairs know of an image
        known = shared_keypoints(pairs)
        found = [image if image.keypoint_ids else replace(image, **known[image.id]) for image in found]
    if (folder / "Segmentation").is_dir():
        found = [replace(image, mask=_packed_mask(folder, image)) for image in found]
    return Benchmark(root=folder / "JPEGImages", images=found, pairs=pairs)


def _packed_mask(root: Path, image: Image) -> bytes:
    """An image's mask as an index keeps it.

    Raises:
        UserError: it is missing, damaged or empty, or has the wrong size.
    """
    mask = masks.shown(read_mask(root, image.id, (image.height, image.width)))
    if not mask.any():
        raise UserError(f"{root / 'Segmentation' / image.id}.png: the mask shows no object. Get the dataset again")
    return masks.packed(mask)


def _annotated(root: Path, split: str) -> list[str]:
    """The pair names of a split by its files of annotations, in the order of their numbers."""
    colons = re.compile(rf"[{''.join(COLONS)}](?=[^{''.join(COLONS)}]*$)")
    files = (root / "PairAnnotation" / split).glob("*.json")
    lines = [colons.sub(":", path.stem) for path in files if not path.name.startswith(".")]
    if strangers := [line for line in lines if not LAYOUT_LINE.fullmatch(line)]:
        raise UserError(f"{root / 'PairAnnotation' / split}: {min(strangers)}.json is not named as a pair is")
    if not lines:
        raise UserError(
            f"{root / 'PairAnnotation' / split}: holds no annotations of pairs, nor has {root} a list of them"
        )
    return sorted(lines, key=lambda line: (int(_parse(line)[0]), line))


def read_image(root: Path, image_id: str, size: tuple[int, int], images: Path | None = None) -> Image:
    """Read the annotation of an image of this (height, width), if it has one; `images` as in `read`.

    Raises:
        UserError: it is damaged, or has the wrong image size.
    """
    annotation = read_image_annotation(root, image_id)
    path = root / "ImageAnnotation" / f"{image_id}.json"
    pose = azimuth = None
    keypoints: dict[str, list[float]] = {}
    if annotation is not None:
        with understood(path, "an image annotation of SPair-71k"):
            annotated = (int(annotation["image_height"]), int(annotation["image_width"]))
            pose, azimuth = str(annotation["pose"]), code(annotation["azimuth_id"], AZIMUTHS)
            keypoints = {key: _points([point])[0] for key, point in annotation["kps"].items() if point is not None}
        if annotated != size:
            raise other_size(path, _image_file(images or root, image_id), annotated, size)
    category = image_id.split("/")[0]
    height, width = size
    file = _image_file(images or root, image_id).relative_to((images or root) / "JPEGImages").as_posix()
    image = Image(
        id=image_id,
        file=file,
        category=category,
        height=height,
        width=width,
        pose=pose,
        azimuth=azimuth,
        keypoint_ids=list(keypoints),
        keypoints=list(keypoints.values()),
    )
    return check_image(image, path)


def read_layout(root: Path, split: str, layout: str) -> list[str]:
    """Read the pair names of a split, in order; each must be unique."""
    path = _layout(root, split, layout)
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise UserError(f"{path}: the list of pairs is missing; {root} is not in SPair-71k's format") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text ({error}). Get the dataset again") from None
    for number, line in enumerate(lines, start=1):
        if not LAYOUT_LINE.fullmatch(line):
            raise UserError(f"{path}:{number}: {line!r} is not a pair name (number-source-target:category)")
    if not lines:
        raise UserError(f"{path}: the list of pairs is empty")
    seen: dict[tuple[str, ...], str] = {}
    for line in lines:
        if (first := seen.setdefault(_parse(line)[1:], line)) is not line:
            raise UserError(f"{path}: pair {line} is listed twice" + (f" (as {first})" if first != line else ""))
    return lines


def _parse(line: str) -> tuple[str, ...]:
    """Number, source, target and category of a pair name."""
    match = LAYOUT_LINE.fullmatch(line)
    assert match, "lines were checked when they were read"
    return match.groups()


def read_image_annotation(root: Path, image_id: str) -> dict[str, Any] | None:
    """The JSON of an image's annotation, or None if it has none.

    Its keys: filename, image_width, image_height, category, pose, azimuth_id, truncated, occluded, difficult, bndbox
    (x0, y0, x1, y1), kps (number -> x y, or None if not visible), and the image's origin.
    """
    path = root / "ImageAnnotation" / f"{image_id}.json"
    return read_json(path) if path.exists() else None


def read_pair(root: Path, split: str, line: str, sizes: dict[str, tuple[int, int]], images: Path | None = None) -> Pair:
    """Read the annotation of one line of a layout; `sizes` collects (height, width) by image id; `images` as in `read`.

    Raises:
        UserError: it or one of its images is missing or damaged.
    """
    path = _pair_file(root / "PairAnnotation" / split, line)
    values = read_json(path)
    with understood(path, "an annotation of SPair-71k"):
        pair = _to_pair(values, line)
        for id_, (width, height, *_) in ((pair.source, values["src_imsize"]), (pair.target, values["trg_imsize"])):
            if id_ not in sizes:
                sizes[id_] = image_size(_image_file(images or root, id_))
            if sizes[id_] != (height, width):
                raise other_size(path, _image_file(images or root, id_), (height, width), sizes[id_])
    return check_pair(pair, sizes, path)


def _pair_file(folder: Path, line: str) -> Path:
    """A pair's annotation; Windows allows no colon in names, so unpackers there write another character."""
    names = [f"{line.replace(':', instead)}.json" for instead in COLONS]
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _to_pair(values: dict[str, Any], line: str) -> Pair:
    category = values["category"]
    names = [re.sub(r"\.jpg$", "", values[key], flags=re.IGNORECASE) for key in ("src_imname", "trg_imname")]
    if not line.endswith(f"-{names[0]}-{names[1]}:{category}"):
        raise ValueError(f"it pairs {names[0]} and {names[1]} of {category}, unlike its name")
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
        raise TypeError(f"{value!r} is not a keypoint number")
    return str(value)


def _points(values: list) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in values]


def _box(values: list) -> list[float]:
    x0, y0, x1, y1 = map(float, values)
    return [x0, y0, x1, y1]
