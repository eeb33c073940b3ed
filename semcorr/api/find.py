"""Find labelled points in any number of images: a few labelled images in, points and a COCO file out.

    from semcorr import Support

    support = Support([("cat1.jpg", {"left eye": (120, 80)}), ("cat2.jpg", {"left eye": (64, 30), "nose": (70, 44)})])
    found = support.find("cat3.jpg")
    found.points["nose"], found.similarity["nose"]

Points are (x, y) in pixels of the upright image, rotated as its EXIF data say.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from semcorr.api.images import Matcher, open_image, points_on
from semcorr.datasets import coco
from semcorr.datasets.base import in_any_case, named
from semcorr.datasets.decode import AnyImage
from semcorr.errors import UserError, one_of
from semcorr.matching import answers, heatmaps
from semcorr.readouts import readout
from semcorr.report import pictures
from semcorr.tensors import normalise, sample

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
Combine = Literal["mean", "nearest"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a support finds in an image.

    Attributes:
        image: upright RGB.
        points: part -> (2,), x y in its pixels.
        similarity: part -> cosine with what was labelled, in [-1, 1].
    """

    image: PillowImage.Image
    points: dict[str, np.ndarray]
    similarity: dict[str, float]


class Support:
    """A few labelled images, whose parts are found in other images.

    Args:
        labelled: each an image and its points, part -> x y; not every image needs every part.
        combine: a place is as similar as it is to the mean of the descriptors of the images that show the part
            ("mean"), or to the nearest of them ("nearest").
        matcher: the network and the rule.
        **network: of a new Matcher in its place, such as `backbone="demo"`.

    Attributes:
        names: of the parts, in the order in which they appear.

    Raises:
        UserError: nothing is labelled, an image cannot be read, a point lies outside it, or the rule searches the
            object alone.
    """

    @torch.inference_mode()
    def __init__(
        self,
        labelled: Sequence[tuple[AnyImage, Mapping[str, Sequence[float]]]],
        *,
        combine: Combine = "mean",
        matcher: Matcher | None = None,
        **network: Any,
    ):
        if matcher is not None and network:
            raise UserError(f"give a matcher or {', '.join(network)}, not both")
        opened = [(open_image(image), dict(points)) for image, points in labelled]
        self.names = list(dict.fromkeys(name for _, points in opened for name in points))
        if not self.names:
            raise UserError("no labelled point: give at least one image with one")
        places = [points_on(image, list(points.values())) if points else None for image, points in opened]
        self.combine = one_of("combine", combine, ["mean", "nearest"])
        self.matcher = matcher or Matcher(**network)
        if self.matcher.rule.search == "object":
            raise UserError(f"rules.{self.matcher.rule_name} searches the object alone, whose masks are not known here")
        self.shown = [(image, points) for image, points in opened if points]
        rows: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for (image, points), starts in zip(opened, places, strict=True):
            if starts is not None:
                features, grid = self.matcher.features(image)
                cells = torch.from_numpy(grid.pixels_to_cells(starts)).to(features.device)
                for name, row in zip(points, sample(features, cells, self.matcher.rule.sampling), strict=True):
                    rows[name].append(row)
        self._descriptors = [torch.stack(rows[name]) for name in self.names]  # each (images that show it, C)
        if self.combine == "mean":
            self._descriptors = [normalise(normalise(some).mean(dim=0, keepdim=True)) for some in self._descriptors]

    @torch.inference_mode()
    def find(self, target: AnyImage) -> Found:
        """Find every part in an image.

        Raises:
            UserError: it cannot be read.
        """
        image = open_image(target)
        features, grid = self.matcher.features(image)
        counts = [len(some) for some in self._descriptors]
        each = heatmaps(torch.cat(self._descriptors), features).split(counts)
        maps = torch.stack([some.amax(dim=0) for some in each])
        points, similarity = answers(maps, grid, readout(self.matcher.rule), None)
        return Found(
            image=image,
            points=dict(zip(self.names, points, strict=True)),
            similarity=dict(zip(self.names, similarity.tolist(), strict=True)),
        )

    def picture(self, found: Found, side: int = 512, min_similarity: float | None = None) -> PillowImage.Image:
        """The labelled image that shows most parts beside another one, with a line from each to where it was found.

        Args:
            found: in the other image.
            side: pixels of each image.
            min_similarity: leave out parts below this cosine; None draws all.
        """
        image, points = max(self.shown, key=lambda one: len(one[1]))
        names = [name for name in points if min_similarity is None or found.similarity[name] >= min_similarity]
        return pictures.matches(
            image,
            found.image,
            np.array([points[name] for name in names], float).reshape(-1, 2),
            np.array([found.points[name] for name in names], float).reshape(-1, 2),
            side=side,
            similarity=np.array([found.similarity[name] for name in names]),
            numbers=[self.names.index(name) + 1 for name in names],
        )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labelled images of a COCO keypoints file, of one category.

    Attributes:
        category: its name.
        names: of its keypoints, in the file's order.
        images: file and points of each object, part -> x y.
        left_out: what the file has besides -> how many.
    """

    category: str
    names: list[str]
    images: list[tuple[Path, dict[str, list[float]]]]
    left_out: dict[str, int]

    @classmethod
    def read(cls, path: Path, folder: Path | None = None, category: str | None = None) -> "Labels":
        """Read a file of annotations.

        Args:
            path: of the file.
            folder: that holds its images; None takes the file's own, or `images` beside it.
            category: None if it has keypoints of one only.

        Raises:
            UserError: the file or an image is missing or damaged, or several categories have keypoints.
        """
        content = coco.read_file(path)
        items, left_out = coco.read_items(content, path, boxes=False)
        known = list(dict.fromkeys(item.category for item in items))
        if not known:
            raise UserError(f"{path}: no object has a keypoint")
        if category is None and len(known) > 1:
            raise UserError(f"{path}: has keypoints of {', '.join(known)}; choose one with --category")
        category = one_of("category", category or known[0], known)
        chosen = [item for item in items if item.category == category]
        folders = [path.parent, path.parent / "images"] if folder is None else [folder]
        found = (place for place in folders if in_any_case(place / chosen[0].file).is_file())
        place = next(found, folders[0])
        images = [(place / coco.checked_image(place, item, path).file, _on_pixels(item)) for item in chosen]
        names = next(one.keypoints for one in content.categories if one.name == category)
        others = len(items) - len(chosen)
        left_out |= {"objects of other categories": others} if others else {}
        return cls(category=category, names=names, images=images, left_out=left_out)


def _on_pixels(item: coco.Item) -> dict[str, list[float]]:
    """An object's points; those on the far edge of the image, where tools may put them, on its last pixels."""
    height, width = item.size
    return {name: [min(x, width - 1), min(y, height - 1)] for name, (x, y) in item.points.items()}


def targets(folder: Path, labels: Labels) -> list[Path]:
    """The image files of a folder that are not labelled, sorted; each is decoded once as a check.

    Raises:
        UserError: there is none, or one is not a readable image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    known = {path.resolve() for path, _ in labels.images}
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    files = [path for path in files if not path.name.startswith(".") and path.resolve() not in known]
    if not files:
        raise UserError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))}) beside the labelled ones")
    for path in files:
        open_image(named(path))
        if "\\" in path.name:
            raise UserError(f"{path}: a file of annotations cannot name it, for its backslash. Rename it")
    return files


def annotations(labels: Labels, found: Iterator[tuple[str, Found]], lowest: float | None) -> dict[str, Any]:
    """A COCO keypoints file of what was found: an object per image.

    Args:
        labels: name the category and its keypoints.
        found: file name of each image, and what was found in it.
        lowest: cosine below which a part counts as not there; None keeps all.
    """
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number, (name, one) in enumerate(found, start=1):
        images.append({"id": number, "file_name": name, "width": one.image.width, "height": one.image.height})
        values, similarity = [], []
        kept = [part for part in one.points if lowest is None or one.similarity[part] >= lowest]
        for part in labels.names:
            x, y = (round(float(value), 2) for value in one.points[part]) if part in kept else (0, 0)
            values += [x, y, 2 if part in kept else 0]
            similarity.append(round(one.similarity[part], 4) if part in one.similarity else None)
        if kept:
            places = np.stack([one.points[part] for part in kept])
            start, size = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "keypoints": values,
                    "num_keypoints": len(kept),
                    "similarity": similarity,
                    "bbox": [round(float(value), 2) for value in (*start, *size)],
                    "area": round(float(np.prod(size)), 2),
                    "iscrowd": 0,
                }
            )
    category = {"id": 1, "name": labels.category, "supercategory": "", "keypoints": labels.names, "skeleton": []}
    return {"images": images, "annotations": objects, "categories": [category]}
