"""Keypoints and categories that nothing is trained on, so that results split into seen and unseen.

A keypoint is held out by its name, in every category: were the left eye of cats held out and that of dogs trained on,
it would not be unseen. Each name is drawn by itself, from the seed and the name, so that it does not matter which
others a dataset has.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from semcorr.datasets.base import Pair, drawn
from semcorr.params import HoldOuts

GROUPS = ("seen", "unseen keypoints", "unseen categories")


def is_held_out(name: str, hold_outs: HoldOuts) -> bool:
    """Whether a keypoint of a trained category is held out."""
    if hold_outs.keypoints is None:
        return False
    return drawn(hold_outs.keypoints.seed, name) < hold_outs.keypoints.fraction


def groups(category: Sequence[str], keypoint: Sequence[str], hold_outs: HoldOuts) -> np.ndarray:
    """The group of each of N keypoints, (N,) int, an index of GROUPS.

    Args:
        category: N names; of a pair across two categories, `cat to cow`.
        keypoint: N names.
        hold_outs: what is held out.
    """
    unseen = {name for name in set(category) if {name, *name.split(" to ")} & {*(hold_outs.categories or ())}}
    held_out = {name for name in set(keypoint) if is_held_out(name, hold_outs)}
    return np.array(
        [2 if one in unseen else int(name in held_out) for one, name in zip(category, keypoint, strict=True)]
    )


def seen(pairs: list[Pair], hold_outs: HoldOuts | None) -> list[Pair]:
    """The pairs without what is held out; those of held-out categories have no keypoint left."""
    if hold_outs is None:
        return pairs
    kept = []
    for pair in pairs:
        group = groups([pair.category] * len(pair.keypoint_ids), pair.keypoint_ids, hold_outs)
        left = np.flatnonzero(group == 0)
        kept.append(
            replace(
                pair,
                keypoint_ids=[pair.keypoint_ids[index] for index in left],
                source_keypoints=[pair.source_keypoints[index] for index in left],
                target_keypoints=[pair.target_keypoints[index] for index in left],
            )
        )
    return kept
