"""COCO keypoints: a JSON file as labelling tools export it, and a folder of images.

`categories` have an id, a name and the names of their `keypoints`; `images` an id, a file_name, a width and a height;
`annotations` an id, an image_id, a category_id, a bbox as x y w h, keypoints as x y visibility for each name, and
iscrowd. Format: https://cocodataset.org/#format-data.

Every annotated object is an item of its own, with its own keypoints and box, also where an image holds several. A
keypoint counts if its visibility is 1 or 2: annotated, in view or not. Those outside their image are left out.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, permutations
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from semcorr.datasets.base import (
    Benchmark,
    Image,
    NoSuchCategory,
    Pair,
    check_image,
    check_pair,
    common_keypoints,
    in_any_case,
    in_part,
    named,
)
from semcorr.datasets.decode import image_size, other_size, stored_orientation
from semcorr.datasets.formats import Files
from semcorr.errors import UserError
from semcorr.params import COCOSpec, Sample

WHOLE = {"annotations": "?", "images": ".", "pairs": "within", "sample": None, "categories": None, "limit": None}
START = 1 << 16  # bytes by which a file is recognised
MOST = 1_000_000  # pairs that are listed without a sample


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int
    height: int


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str
    keypoints: list[str] = []


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: list[float] | None = None
    keypoints: list[float] | None = None
    iscrowd: int | bool = 0


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One annotated object.

    Attributes:
        id: its image's file and its annotation's id.
        file: the image's path below the folder of images.
        size: of the image, (height, width), by the annotation.
        points: its annotated keypoints, name -> x y.
        bbox: x0, y0, x1, y1.
    """

    id: str
    file: str
    category: str
    size: tuple[int, int]
    points: dict[str, list[float]]
    bbox: list[float]


def find(folder: Path) -> Path | None:
    """Find the root of the format: `folder` itself or a folder in it."""
    candidates = (path for path in (folder, *sorted(folder.iterdir())) if path.is_dir())
    return next((path for path in candidates if next(_files(path), None)), None)


def _files(root: Path) -> Iterator[Path]:
    """The files of annotations in a folder or in its folder `annotations`, recognised by how they start."""
    for folder in (root, root / "annotations"):
        for path in sorted(folder.glob("*.json")):
            if not path.name.startswith(".") and path.is_file():
                with path.open("rb") as file:
                    start = file.read(START).lstrip(b"\xef\xbb\xbf \t\r\n")
                if start.startswith(b"{") and any(f'"{key}"'.encode() in start for key in _File.__struct_fields__):
                    yield path


def load(root: Path, spec: COCOSpec) -> Benchmark:
    """Pairs of the objects in a file, all ordered ones or a seeded number.

    Raises:
        UserError: the file or an image is missing or damaged, or one contradicts the other.
    """
    path = root / spec.annotations
    items, left_out = read_items(read_file(path), path)
    chosen = _chosen(items, spec, path)
    left_out |= {"objects of other categories or parts": len(items) - len(chosen)} if len(chosen) < len(items) else {}
    both, dropped = _paired(chosen, spec, path)
    used = {item.id: item for pair in both for item in pair}
    images = {id_: checked_image(root / spec.images, used[id_], path) for id_ in sorted(used)}
    sizes = {id_: (image.height, image.width) for id_, image in images.items()}
    return Benchmark(
        root=root / spec.images,
        images=list(images.values()),
        pairs=[check_pair(_pair(*pair), sizes, path) for pair in both],
        left_out=left_out | dropped,
    )


def listed(files: Files, spec: COCOSpec) -> list[tuple[str, str]]:
    """The images of each pair."""
    text = files.text(spec.annotations)
    path = Path(spec.annotations)
    if not text:
        return []
    items, _ = read_items(decoded(text.encode(), path), path)
    both, _ = _paired(_chosen(items, spec, path), spec, path)
    folder = PurePosixPath(spec.images)
    return [((folder / first.file).as_posix(), (folder / second.file).as_posix()) for first, second in both]


def parts(root: Path, spec: COCOSpec) -> list[COCOSpec]:
    """The files of annotations; of a large one, some of its pairs."""
    found = []
    for path, items, folder in _annotated(root):
        names = {"annotations": path.relative_to(root).as_posix(), "images": folder.relative_to(root).as_posix()}
        sample = Sample(seed=0, pairs=1000) if len(_Both(items, "within")) > MOST else None
        found.append(spec.model_copy(update={**names, "sample": sample, "limit": None}))
    return found


def rest(root: Path) -> list[Path]:
    """Every image file of the annotations, each of which is read and checked against its image."""
    files: dict[Path, None] = {}
    for path, items, folder in _annotated(root):
        files |= {folder / checked_image(folder, item, path).file: None for item in items}
    return list(files)


def _annotated(root: Path) -> Iterator[tuple[Path, list[Item], Path]]:
    """Each file of annotations, its objects, and the folder that its images are in."""
    folders = [root, *(path for path in sorted(root.glob("**/")) if path != root)]
    for path in _files(root):
        items, _ = read_items(read_file(path), path)
        there = (folder for folder in folders if items and in_any_case(folder / items[0].file).is_file())
        yield path, items, next(there, root)


def absent(root: Path) -> list[str]:
    """Nothing: the format lists no more than its files."""
    return []


def verify(root: Path, spec: COCOSpec) -> list[str]:
    """Nothing beside what `load` checks."""
    return []


def read_file(path: Path) -> _File:
    """The content of a file of annotations.

    Raises:
        UserError: it is missing, not JSON, or not of the format.
    """
    try:
        content = named(path).read_bytes()
    except FileNotFoundError:
        here = ", ".join(sorted(found.name for found in path.parent.glob("*.json"))) or "no JSON file"
        raise UserError(f"{path}: no such file of annotations; there is {here}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return decoded(content, path)


def decoded(content: bytes, path: Path) -> _File:
    """The content of a file of annotations.

    Raises:
        UserError: it is not JSON, or not of the format.
    """
    try:
        return msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a COCO keypoints file ({error})") from None


def read_items(file: _File, path: Path, *, boxes: bool = True) -> tuple[list[Item], dict[str, int]]:
    """The objects with keypoints, in the file's order, and how many others there are, by why.

    Args:
        file: the annotations.
        path: names them in errors.
        boxes: whether each object needs a box, as PCK does; else that of an object without one is empty.

    Raises:
        UserError: two entries share an id or a name, one refers to another that is missing, or values make no sense.
    """
    for kind, entries in (("image", file.images), ("category", file.categories), ("annotation", file.annotations)):
        _distinct((entry.id for entry in entries), f"{kind} id", path)
    _distinct((category.name for category in file.categories), "category name", path)
    for category in file.categories:
        _distinct(category.keypoints, f"keypoint of category {category.name}", path)
    images = {image.id: image for image in file.images}
    found = {image.id: _checked_file(image, path) for image in file.images}
    files = {id_: place.as_posix() for id_, place in found.items()}
    _distinct(files.values(), "file_name", path)
    stems = {id_: place.with_suffix("").as_posix() for id_, place in found.items()}
    categories = {category.id: category for category in file.categories}
    items, left_out = [], Counter[str]()
    for annotation in file.annotations:
        where = f"{path}: annotation {annotation.id}"
        if annotation.image_id not in images:
            raise UserError(f"{where}: its image_id {annotation.image_id} is not among the images")
        if annotation.category_id not in categories:
            raise UserError(f"{where}: its category_id {annotation.category_id} is not among the categories")
        category = categories[annotation.category_id]
        if annotation.iscrowd:
            left_out["crowds"] += 1
        elif not category.keypoints:
            left_out["objects of categories without keypoints"] += 1
        else:
            image = images[annotation.image_id]
            annotated = _points(annotation, category, where)
            points = {name: point for name, point in annotated.items() if _is_inside(point, image)}
            left_out["keypoints outside their image"] += len(annotated) - len(points)
            if points:
                item = Item(
                    id=f"{stems[image.id]}-{annotation.id}",
                    file=files[image.id],
                    category=category.name,
                    size=(image.height, image.width),
                    points=points,
                    bbox=_checked_box(annotation, where) if boxes else [],
                )
                items.append(item)
            else:
                left_out["objects without a keypoint"] += 1
    return items, dict(+left_out)


def _distinct(values: Iterable[object], what: str, path: Path) -> None:
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{path}: {what} {twice} occurs twice. Give each its own")


def _points(annotation: _Annotation, category: _Category, where: str) -> dict[str, list[float]]:
    """The annotated keypoints of an object, by name."""
    values = annotation.keypoints or []
    names = category.keypoints
    if not values:
        return {}
    if len(values) != 3 * len(names):
        count = f"{len(values) / 3:g} keypoints (x, y, visibility)"
        raise UserError(f"{where}: has {count}, its category {category.name} has {len(names)} names")
    rows = zip(names, values[::3], values[1::3], values[2::3], strict=True)
    points = {}
    for name, x, y, visibility in rows:
        if visibility not in (0, 1, 2):
            raise UserError(f"{where}: visibility {visibility:g} of {name}; allowed: 0, 1 or 2")
        if visibility:
            points[name] = [x, y]
    return points


def _is_inside(point: list[float], image: _Image) -> bool:
    """Whether an image has such a point; some tools let people click beside it."""
    return 0 <= point[0] <= image.width and 0 <= point[1] <= image.height


def _checked_file(image: _Image, path: Path) -> PurePosixPath:
    """An image's path below the folder of images."""
    file = PurePosixPath(image.file_name)
    if not image.file_name or file.is_absolute() or ".." in file.parts or "\\" in image.file_name:
        raise UserError(f"{path}: file_name {image.file_name!r} is not a path below the folder of images")
    return file


def _checked_box(annotation: _Annotation, where: str) -> list[float]:
    """An object's box (x0, y0, x1, y1)."""
    if annotation.bbox is None or len(annotation.bbox) != 4:
        raise UserError(f"{where}: bbox {annotation.bbox} is not x, y, width, height; PCK needs it")
    x, y, width, height = annotation.bbox
    if not (width > 0 and height > 0):
        raise UserError(f"{where}: bbox {annotation.bbox} has no area (x, y, width, height)")
    return [x, y, x + width, y + height]


def _chosen(items: list[Item], spec: COCOSpec, path: Path) -> list[Item]:
    """The items of the categories and of the part that params.yaml names."""
    known = {item.category for item in items}
    if strangers := [name for name in spec.categories or () if name not in known]:
        has = ", ".join(sorted(known)) or "none"
        raise NoSuchCategory(f"{path}: holds no keypoints of category {strangers[0]}; it has {has}")
    wanted = spec.categories or known
    return [item for item in items if item.category in wanted and in_part(item.file, spec.part)]


def _paired(items: list[Item], spec: COCOSpec, path: Path) -> tuple[list[tuple[Item, Item]], dict[str, int]]:
    """The pairs that params.yaml asks for, and how many others there are, by why."""
    every = _Both(items, spec.pairs)
    if spec.sample is None and len(every) > MOST:
        raise UserError(
            f"{path}: has {len(every):,} pairs, more than the {MOST:,} that are listed whole. In params.yaml, set "
            "sample: {seed: 0, pairs: 10000}"
        )
    numbers, left_out = every.usable(spec.sample)
    if spec.sample is not None and len(numbers) < spec.sample.pairs:
        drawn = min(len(every), 2 * MOST)
        among = "" if drawn == len(every) else f" among {drawn:,} that were drawn"
        asked = f"params.yaml asks for a sample of {spec.sample.pairs:,}"
        raise UserError(f"{path}: has {len(numbers):,} usable pairs{among}, {asked}")
    return [every[number] for number in numbers], left_out


class _Both:
    """All ordered pairs of two objects, of one category or of two different ones, numbered but not listed."""

    def __init__(self, items: list[Item], pairs: str):
        by_category: dict[str, list[Item]] = {}
        for item in sorted(items, key=lambda item: item.id):
            by_category.setdefault(item.category, []).append(item)
        names = sorted(by_category)
        wanted = ((name, name) for name in names) if pairs == "within" else permutations(names, 2)
        self._blocks = [(by_category[first], by_category[second]) for first, second in wanted]
        self._ends = list(accumulate(len(a) * (len(b) - (a is b)) for a, b in self._blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> tuple[Item, Item]:
        block = bisect_right(self._ends, number)
        sources, targets = self._blocks[block]
        same = sources is targets
        first, second = divmod(number - (self._ends[block - 1] if block else 0), len(targets) - same)
        return sources[first], targets[second + (same and second >= first)]

    def usable(self, sample: Sample | None) -> tuple[list[int], dict[str, int]]:
        """The numbers of pairs with a common keypoint, all or as many as asked for; and what was left out."""
        dropped, kept = Counter[str](), []
        for number in range(len(self)) if sample is None else self._drawn(sample.seed):
            first, second = self[number]
            if first.file == second.file:  # a point would find itself
                dropped["pairs within one image"] += 1
            elif first.points.keys().isdisjoint(second.points):
                dropped["pairs without common keypoints"] += 1
            else:
                kept.append(number)
            if sample is not None and len(kept) == sample.pairs:
                rest = len(self) - len(kept)
                dropped = Counter({"pairs that were not drawn": rest} if rest else {})
                break
        return sorted(kept), dict(dropped)

    def _drawn(self, seed: int) -> Iterator[int]:
        """Every number once, in random order."""
        rng = np.random.default_rng(seed)
        if len(self) <= MOST:
            yield from rng.permutation(len(self)).tolist()
            return
        seen: set[int] = set()
        while len(seen) < min(len(self), 2 * MOST):  # where so many hold too few, hardly any is usable
            for number in rng.integers(len(self), size=1024).tolist():
                if number not in seen:
                    seen.add(number)
                    yield number


def checked_image(folder: Path, item: Item, path: Path) -> Image:
    """An item as an image of the benchmark, after a look at its file."""
    file = in_any_case(folder / item.file)
    size = image_size(file)
    if size != item.size:
        raise other_size(path, file, item.size, size)
    if (turned := stored_orientation(file)) != 1:
        raise UserError(
            f"{file}: has EXIF orientation {turned}, so that {path.name} may mean the pixels as stored or as viewers "
            "rotate them. Rotate the pixels themselves and remove the tag"
        )
    image = Image(
        id=item.id,
        file=file.relative_to(folder).as_posix(),
        category=item.category,
        height=size[0],
        width=size[1],
        keypoint_ids=list(item.points),
        keypoints=list(item.points.values()),
    )
    return check_image(image, f"{path}: annotation {item.id.rpartition('-')[2]}")


def _pair(first: Item, second: Item) -> Pair:
    one = first.category == second.category
    category = first.category if one else f"{first.category} to {second.category}"
    return Pair(
        id=f"{first.id}:{second.id}:{category}",
        category=category,
        source=first.id,
        target=second.id,
        source_bbox=first.bbox,
        target_bbox=second.bbox,
        subset="within" if one else "across",
        **common_keypoints(first.points, second.points),
    )
