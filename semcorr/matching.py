"""Match source keypoints to a target image: cosine similarity, then a readout. Tensors in, tensors out.

Feature maps are (h, w, C), valid cells only. Points are (x, y), in cells or original pixels.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.readouts import ReadOut
from semcorr.tensors import normalise, require_shape, sample, unit  # noqa: F401  # normalise: to match by hand

CHUNK = 2048  # keypoints whose heatmaps are in memory at once
FLAT = 1e-6  # a range of similarity that is only rounding

logger = logging.getLogger(__name__)


def heatmaps(descriptors: Tensor, features: Tensor) -> Tensor:
    """Cosine similarity (N, h, w) of descriptors (N, C) with every cell of a map (h, w, C), all of unit length."""
    require_shape("features", features, "h", "w", "C")
    require_shape("descriptors", descriptors, "N", features.shape[2])
    return (descriptors @ features.flatten(0, 1).T).unflatten(1, features.shape[:2])


def match_points(
    points: np.ndarray,
    source: tuple[Tensor, Grid],
    target: tuple[Tensor, Grid],
    sampling: str,
    read_out: ReadOut,
    searched: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find points of one image in another.

    Args:
        points: (N, 2), x y in original pixels of the source.
        source: its feature map (h, w, C), of unit length, and its grid.
        target: the same of the target.
        sampling: of source descriptors, "bilinear" or "nearest".
        read_out: heatmaps (N, h, w) -> predicted cells (N, 2), x y.
        searched: the target's cells (h, w) bool that may be answered; None for all.

    Returns:
        (N, 2), x y in original pixels of the target, and their similarity (N,).
    """
    require_shape("points", points, "N", 2)
    cells = torch.from_numpy(source[1].pixels_to_cells(points)).to(source[0].device)
    return answers(heatmaps(sample(source[0], cells, sampling), target[0]), target[1], read_out, searched)


def answers(maps: Tensor, grid: Grid, read_out: ReadOut, searched: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Each heatmap's predicted keypoint (N, 2) and its highest similarity (N,); warns of flat heatmaps.

    The similarity of cells that are not searched becomes minus infinity.

    Raises:
        UserError: a heatmap is not finite.
    """
    if searched is not None:
        maps = maps.masked_fill(~torch.from_numpy(searched).to(maps.device), -torch.inf)
    cells = maps.shape[1:].numel() if searched is None else int(searched.sum())
    highest = maps.flatten(1).amax(dim=1)
    if wrong := (~torch.isfinite(highest)).sum().item():
        raise UserError(f"the similarity of {wrong} keypoints is not finite, so they cannot be matched")
    # Two corners first: they nearly always show that a map is not flat, without a search for its minimum.
    corners = maps[:, 0, 0], maps[:, -1, -1]
    flat = torch.stack([(highest - one < FLAT) | torch.isneginf(one) for one in corners]).all(dim=0)
    if cells > 1 and flat.any():
        some = maps[flat].flatten(1)
        least = some.masked_fill(torch.isneginf(some), torch.inf).amin(dim=1)
        count = (highest[flat] - least < FLAT).sum().item()
        if count:
            logger.warning(
                "%d keypoints are equally similar to every cell of their target, so their matches say nothing", count
            )
    return grid.answers(read_out(maps).cpu().double().numpy()), highest.cpu().double().numpy()


def match_pairs(
    pairs: Sequence[tuple[str, str, np.ndarray]],
    features: Callable[[str], tuple[Tensor, Grid]],
    sampling: str,
    read_out: ReadOut,
    progress: Callable[[list], Iterable] = iter,
    searched: Callable[[str, Grid], np.ndarray] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predict the target keypoints of P pairs.

    Each image is read once as a source and once as a target, however many pairs use it: first every keypoint's
    descriptor is sampled, then each target is compared with all its keypoints at once.

    Args:
        pairs: source id, target id, and keypoints (N, 2), x y in original pixels of the source.
        features: image id -> feature map (h, w, C), of any float type, not necessarily normalised, and its grid.
        sampling: of source descriptors, "bilinear" or "nearest".
        read_out: heatmaps (N, h, w) -> predicted cells (N, 2), x y.
        progress: wraps the list of targets in a progress bar.
        searched: image id and grid of a target -> its cells (h, w) bool that may be answered; None for all.

    Returns:
        For each pair, predicted keypoints (N, 2), x y in original pixels of the target, and their similarity (N,).

    Raises:
        ValueError: an array of keypoints has the wrong shape.
        UserError: an image's features are not finite; the message names it.
    """
    for _, _, keypoints in pairs:
        require_shape("keypoints", keypoints, "N", 2)
    counts = np.array([len(keypoints) for _, _, keypoints in pairs], int)
    pixels = np.concatenate([np.empty((0, 2)), *(keypoints for _, _, keypoints in pairs)])
    by_source = by_image([source for source, _, _ in pairs], counts)
    by_target = by_image([target for _, target, _ in pairs], counts)
    # One block of descriptors, sorted by target: many small arrays, allocated between large temporary ones, would
    # fragment the heap and multiply its size.
    place = np.argsort(np.concatenate([np.empty(0, int), *by_target.values()]))
    descriptors = torch.empty(0)
    for image_id, numbers in by_source.items():
        raw, grid = features(image_id)
        if not len(descriptors):
            descriptors = raw.new_empty(len(pixels), raw.shape[2], dtype=torch.float32)
        cells = torch.from_numpy(grid.pixels_to_cells(pixels[numbers])).to(raw.device)
        descriptors[torch.from_numpy(place[numbers])] = sample(unit(raw, image_id), cells, sampling)
    predicted, similarity = np.empty_like(pixels), np.empty(len(pixels))
    first = 0
    for image_id in progress(list(by_target)):
        raw, grid = features(image_id)
        target, numbers = unit(raw, image_id), by_target[image_id]
        allowed = None if searched is None else searched(image_id, grid)
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            maps = heatmaps(descriptors[first : first + len(chunk)], target)
            predicted[chunk], similarity[chunk] = answers(maps, grid, read_out, allowed)
            first += len(chunk)
    ends = np.cumsum(counts).tolist()
    slices = [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]
    return [(predicted[pair], similarity[pair]) for pair in slices]


def by_image(image_ids: Sequence[str], counts: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of each image's keypoints, in ascending order.

    Args:
        image_ids: P image ids, one per pair.
        counts: (P,), keypoints of each pair; they are numbered from 0, pair after pair.
    """
    index = {image_id: at for at, image_id in enumerate(dict.fromkeys(image_ids))}
    owner = np.repeat(np.array([index[image_id] for image_id in image_ids], int), counts)
    ends = np.cumsum(np.bincount(owner, minlength=len(index)))
    return dict(zip(index, np.split(np.argsort(owner, kind="stable"), ends), strict=False))  # the last part is empty
