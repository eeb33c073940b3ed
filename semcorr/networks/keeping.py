"""Ways to keep what the frozen network knew about points that no keypoint of the training set shows.

`anchor` pulls the features of all cells towards those before training. `confident` finds matches that the averaged
network is sure of anywhere on the objects, which are then trained on like annotated ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from semcorr.datasets.base import Pair
from semcorr.geometry import Grid
from semcorr.matching import heatmaps
from semcorr.params import Distil
from semcorr.readouts.argmax import argmax
from semcorr.tensors import normalise, sample


def anchor(blocks: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """The mean over all cells of 1 minus the cosine of an image's maps (h, w, C), now and before training."""
    cosines = [torch.cosine_similarity(blocks[id_].float(), before[id_].float(), dim=-1) for id_ in blocks]
    return 1 - torch.cat([values.flatten() for values in cosines]).mean()


def confident(
    maps: Mapping[str, tuple[Tensor, Grid]], pairs: Sequence[Pair], settings: Distil, seed: int
) -> list[Pair]:
    """Pairs of images with the points that a network is sure of, instead of the annotated ones.

    Points are drawn evenly from the cells inside the source's box. One is kept if its most similar cell lies in the
    target's box, is similar enough, and leads back to within one cell of the network.

    Args:
        maps: image id -> feature map (h, w, C) and its grid.
        pairs: of these images; some of them are drawn.
        settings: how many pairs and points, and how similar.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, 1])
    drawn = [pairs[index] for index in sorted(rng.permutation(len(pairs))[: settings.pairs])]
    unit = {id_: normalise(maps[id_][0].float()) for pair in drawn for id_ in (pair.source, pair.target)}
    found = []
    for pair in drawn:
        (source, start), (target, end) = ((unit[id_], maps[id_][1]) for id_ in (pair.source, pair.target))
        cells = _inside(start, pair.source_bbox)
        cells = cells[np.sort(rng.permutation(len(cells))[: settings.points])]
        there, similarity = _nearest(source, target, cells)
        back, _ = _nearest(target, source, there)
        points = end.cells_to_pixels(there)
        kept = (np.abs(back - cells).max(axis=1, initial=0) <= start.upsample) & (similarity >= settings.confidence)
        kept &= _contains(pair.target_bbox, points)
        found.append(
            replace(
                pair,
                keypoint_ids=[str(number) for number in range(kept.sum())],
                source_keypoints=start.cells_to_pixels(cells[kept]).tolist(),
                target_keypoints=points[kept].tolist(),
            )
        )
    return [pair for pair in found if pair.keypoint_ids]


def _nearest(source: Tensor, target: Tensor, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar cell (N, 2) of the target for each of the source, and the similarity (N,)."""
    places = torch.from_numpy(cells).to(source)
    similar = heatmaps(sample(source, places, "nearest"), target)
    return argmax(similar).cpu().double().numpy(), similar.flatten(1).amax(dim=1).cpu().numpy()


def _inside(grid: Grid, box: list[float] | None) -> np.ndarray:
    """The cells (N, 2), x y, whose centres lie in a box (x0, y0, x1, y1) in pixels, or in the image."""
    height, width = grid.shape
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2).astype(float)
    return cells[_contains(box, grid.cells_to_pixels(cells))]


def _contains(box: list[float] | None, points: np.ndarray) -> np.ndarray:
    if box is None:
        return np.ones(len(points), bool)
    return np.all((points >= box[:2]) & (points <= box[2:]), axis=1)
