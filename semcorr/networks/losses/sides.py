"""A term that tells parts apart which are alike but for their side or corner: left from right, front from back.

It compares places, not cells, and whole pairs at once, so it is not called as the other losses are.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from semcorr.datasets.base import Pair
from semcorr.geometry import Grid
from semcorr.tensors import normalise, sample

Groups = Callable[[str, Sequence[str]], list[frozenset[str]]]  # category and keypoint names -> parts that are alike


def sides(
    maps: Mapping[str, tuple[Tensor, Grid]], pairs: Sequence[Pair], groups: Groups, temperature: float
) -> Tensor | None:
    """Cross-entropy of each keypoint's own place in its target against the places of its twins there.

    The mean over the keypoints that have twins in their target; None if none has.

    Args:
        maps: image id -> feature map (h, w, C) and its grid.
        pairs: of these images.
        groups: which keypoints are alike.
        temperature: divides the cosine similarity.
    """
    points: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
    known: defaultdict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        points[pair.source].update(zip(pair.keypoint_ids, pair.source_keypoints, strict=True))
        points[pair.target].update(zip(pair.keypoint_ids, pair.target_keypoints, strict=True))
        known[pair.category].update(pair.keypoint_ids)
    alike = {category: groups(category, sorted(names)) for category, names in known.items()}
    descriptors = {image_id: _sampled(maps[image_id], list(places.values())) for image_id, places in points.items()}
    number = {image_id: {name: row for row, name in enumerate(places)} for image_id, places in points.items()}
    values = []
    for pair in pairs:
        group = {name: one for one in alike[pair.category] for name in one}
        shown = number[pair.target]
        names = [name for name in pair.keypoint_ids if len(group.get(name, frozenset()) & shown.keys()) > 1]
        if names:
            compared = torch.tensor([[other in group[name] for other in shown] for name in names])
            own = torch.tensor([shown[name] for name in names], device=descriptors[pair.target].device)
            source = descriptors[pair.source][[number[pair.source][name] for name in names]]
            similar = source @ descriptors[pair.target].T / temperature
            similar = similar.masked_fill(~compared.to(similar.device), -torch.inf)
            values.append(torch.nn.functional.cross_entropy(similar, own, reduction="none"))
    return torch.cat(values).mean() if values else None


def _sampled(image: tuple[Tensor, Grid], points: list[list[float]]) -> Tensor:
    """Descriptors (K, C) of unit length at points (K, 2), x y in pixels."""
    features, grid = image
    cells = torch.from_numpy(grid.pixels_to_cells(np.array(points, float).reshape(-1, 2)))
    return sample(normalise(features), cells.to(features.device), "bilinear")
