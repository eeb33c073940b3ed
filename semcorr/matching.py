"""Finding a source keypoint in a target: by cosine similarity, and a readout of it. Tensors in, tensors out.

Feature maps are (h, w, C), valid cells only. Points are (x, y) in cells here, and in original pixels where a name
says keypoints.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from semcorr.datasets.base import Pair
from semcorr.errors import UserError
from semcorr.finite import unit
from semcorr.geometry import Grid
from semcorr.readouts import ReadOut

CHUNK = 2048  # keypoints whose heatmaps are in memory at once
FLAT = 1e-6  # a range of similarity that is rounding

logger = logging.getLogger(__name__)


def normalise(features: Tensor) -> Tensor:
    """Scale vectors (..., C) to length one; a zero vector stays zero."""
    return torch.nn.functional.normalize(features, dim=-1)


def sample(features: Tensor, cells: Tensor, sampling: str) -> Tensor:
    """Descriptors at points of a feature map.

    Args:
        features: (h, w, C) of unit length.
        cells: (N, 2) x y; points beyond the outermost centres take the border's values.
        sampling: "bilinear" or "nearest".

    Returns:
        (N, C) of unit length.
    """
    height, width, _ = features.shape
    grid = 2 * (cells + 0.5) / cells.new_tensor([width, height]) - 1
    sampled = torch.nn.functional.grid_sample(
        features.permute(2, 0, 1)[None],
        grid[None, None].to(features),
        mode=sampling,
        padding_mode="border",
        align_corners=False,
    )
    return normalise(sampled[0, :, 0].T)


def heatmaps(descriptors: Tensor, features: Tensor) -> Tensor:
    """Cosine similarity (N, h, w) of descriptors (N, C) with every cell of a map (h, w, C), all of unit length."""
    return (descriptors @ features.flatten(0, 1).T).unflatten(1, features.shape[:2])


def match_points(
    points: np.ndarray, source: tuple[Tensor, Grid], target: tuple[Tensor, Grid], sampling: str, read_out: ReadOut
) -> tuple[np.ndarray, np.ndarray]:
    """Predict where points of one image are in another.

    Args:
        points: (N, 2), x y in original pixels of the source.
        source: its feature map (h, w, C), of unit length, and grid.
        target: the same of the target.
        sampling: of source descriptors, "bilinear" or "nearest".
        read_out: heatmaps (N, h, w) -> predicted cells (N, 2), x y.

    Returns:
        (N, 2), x y in original pixels of the target, and their similarity (N,).
    """
    cells = torch.from_numpy(source[1].pixels_to_cells(points)).to(source[0].device)
    maps = heatmaps(sample(source[0], cells, sampling), target[0])
    return target[1].answers(read_out(maps).cpu().double().numpy()), _strongest(maps)


def _strongest(maps: Tensor) -> np.ndarray:
    """The highest similarity (N,) of each heatmap; where one is flat, so that its readout says nothing, a warning.

    Raises:
        UserError: a heatmap holds what is no number, so that its readout would be no answer.
    """
    highest = maps.flatten(1).amax(dim=1)
    wrong = (~torch.isfinite(highest)).sum().item()
    if wrong:
        raise UserError(f"the similarity of {wrong} keypoints is not finite: no answer is made of it")
    # Two corners first: nearly always they tell, and the lowest of all need not be looked for.
    flat = (highest - maps[:, 0, 0] < FLAT) & (highest - maps[:, -1, -1] < FLAT)
    if maps.shape[1:].numel() > 1 and flat.any():
        count = (highest[flat] - maps[flat].flatten(1).amin(dim=1) < FLAT).sum().item()
        if count:
            logger.warning(
                "%d keypoints are as similar to every cell of their target: their answers say nothing", count
            )
    return highest.cpu().double().numpy()


def match_pairs(
    pairs: Sequence[Pair],
    features: Callable[[str], tuple[Tensor, Grid]],
    sampling: str,
    read_out: ReadOut,
    progress: Callable[[Sequence[str]], Sequence[str]] = lambda names: names,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predict the target keypoints of every pair.

    Each image is read once as a source and once as a target, however many pairs use it: first every keypoint's
    descriptor is sampled, then all keypoints that look for an answer in one target are compared with it at once.

    Args:
        pairs: with source keypoints in original pixels.
        features: image id -> feature map (h, w, C), of any length and float type, and its grid.
        sampling: of source descriptors, "bilinear" or "nearest".
        read_out: heatmaps (N, h, w) -> predicted cells (N, 2), x y.
        progress: wraps the list of targets, to show how far it is.

    Returns:
        For each pair, predicted keypoints (N, 2), x y in original pixels of the target, and their similarity (N,).

    Raises:
        UserError: an image's features are not finite; the message names it.
    """
    by_source: dict[str, list[int]] = defaultdict(list)
    by_target: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        by_source[pair.source].append(number)
        by_target[pair.target].append(number)
    # One block for all keypoints of each kind, those that look into one target side by side: many small arrays, made
    # between large ones that come and go, would scatter the heap and multiply its size.
    order = [number for numbers in by_target.values() for number in numbers]
    counts = np.array([len(pairs[number].source_keypoints) for number in order], int)
    ends = np.cumsum(counts).tolist()
    rows = {number: slice(end - count, end) for number, end, count in zip(order, ends, counts.tolist(), strict=True)}
    points, similarity = np.empty((counts.sum(), 2)), np.empty(counts.sum())
    descriptors: Tensor | None = None
    for image_id, numbers in by_source.items():
        raw, grid = features(image_id)
        if descriptors is None:
            descriptors = raw.new_empty(len(points), raw.shape[2], dtype=torch.float32)
        keypoints = [np.array(pairs[number].source_keypoints, float).reshape(-1, 2) for number in numbers]
        cells = torch.from_numpy(grid.pixels_to_cells(np.concatenate(keypoints)))
        found = sample(unit(raw, image_id), cells.to(raw.device), sampling)
        for number, part in zip(numbers, found.split([len(points) for points in keypoints]), strict=True):
            descriptors[rows[number]] = part
    for image_id in progress(list(by_target)):
        numbers = by_target[image_id]
        raw, grid = features(image_id)
        target = unit(raw, image_id)
        first, last = rows[numbers[0]].start, rows[numbers[-1]].stop
        for start in range(first, last, CHUNK):
            some = slice(start, min(start + CHUNK, last))
            maps = heatmaps(descriptors[some], target)
            points[some] = grid.answers(read_out(maps).cpu().double().numpy())
            similarity[some] = _strongest(maps)
    return [(points[rows[number]], similarity[rows[number]]) for number in range(len(pairs))]
