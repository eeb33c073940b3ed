"""Which pairs a report shows, and what is drawn of each: two images, their points, and a similarity map."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semcorr.artifacts.store import Store
from semcorr.datasets.decode import AGAIN, decode
from semcorr.report import pictures

SIDE = 480  # most pixels of an image's longer side
MAP_SIDE = 160  # the same of a similarity map, which is smooth
ENOUGH = 5  # keypoints of a pair that can stand for its category: "1 of 1 right" says nothing


def best_rule(scores: dict[str, pd.DataFrame], key: str) -> str:
    """The rule with the highest PCK per keypoint; the first of those that share it.

    Args:
        scores: rule -> its table of pairs, as the stage evaluate writes it.
        key: of a threshold, such as "PCK@0.10".
    """
    return max(scores, key=lambda rule: scores[rule][key].sum() / scores[rule]["num_keypoints"].sum())


def chosen(scores: pd.DataFrame, key: str) -> list[dict[str, str]]:
    """The best, the median and the worst pair of each category by their own PCK.

    Among pairs of at least ENOUGH keypoints, or of as many as the category's largest has. Of pairs alike, the one with
    more keypoints, then the first by name. A category with fewer than three such pairs has fewer of them.

    Returns:
        Rows with `category`, `which` and `pair`.
    """
    rows = []
    for category, part in scores.groupby("category"):
        part = part[part["num_keypoints"] >= min(ENOUGH, part["num_keypoints"].max())]
        part = part.assign(rate=part[key] / part["num_keypoints"])
        falling, rising = (
            part.sort_values(["rate", "num_keypoints", "pair"], ascending=[rises, False, True])["pair"].tolist()
            for rises in (False, True)
        )
        picked = {"median": falling[(len(falling) - 1) // 2], "best": falling[0], "worst": rising[0]}
        shown = {pair: which for which, pair in reversed(picked.items())}  # of a pair that is two of them, the first
        rows += [
            {"category": str(category), "which": which, "pair": picked[which]}
            for which in ("best", "median", "worst")
            if shown[picked[which]] == which
        ]
    return rows


def drawn_pair(rows: pd.DataFrame, files: dict[str, Path]) -> dict[str, Any]:
    """The images of a pair, and its keypoints in their pixels."""
    sides, points = {}, {}
    for side, names in (("source", ("source",)), ("target", ("predicted", "true"))):
        image = decode(files[rows[f"{side}_image"].iloc[0]], upright=False, remedy=AGAIN)
        small = pictures.fit(image, min(SIDE, max(image.size)))
        sides[side] = {"width": small.width, "height": small.height, "picture": pictures.data_uri(small)}
        for name in names:
            points[name] = pictures.move(rows[[f"{name}_x", f"{name}_y"]].to_numpy(), image, small).round(1).tolist()
    keypoints = [
        {"name": row.keypoint, "correct": bool(row.correct), "error": round(float(row.error), 3)}
        | {name: points[name][index] for name in points}
        for index, row in enumerate(rows.itertuples())
    ]
    return {**sides, "keypoints": keypoints}


def heatmap(source: np.ndarray, cell: np.ndarray, target: np.ndarray, sampling: str) -> np.ndarray:
    """Cosine similarity (h, w) of one point of a feature map with every cell of another.

    Equals matching.sample and matching.heatmaps, as a test checks, but without torch, whose import would take ten times
    as long as the drawing.

    Args:
        source: (h, w, C), not normalised.
        cell: (2,) x y in the source's cells.
        target: (h, w, C), not normalised.
        sampling: "bilinear" or "nearest".
    """
    maps = [values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12) for values in (source, target)]
    height, width, _ = source.shape
    x, y = np.clip(cell, 0, [width - 1, height - 1])
    if sampling == "nearest":
        x, y = np.rint([x, y])
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    across, down = x - left, y - top
    upper = (1 - across) * maps[0][top, left] + across * maps[0][top, right]
    lower = (1 - across) * maps[0][bottom, left] + across * maps[0][bottom, right]
    descriptor = (1 - down) * upper + down * lower
    return maps[1] @ (descriptor / max(np.linalg.norm(descriptor), 1e-12))


def similarity_map(rows: pd.DataFrame, files: dict[str, Path], store: Store, sampling: str) -> dict[str, Any]:
    """How similar a pair's target is to its middle keypoint, as a picture that covers the target."""
    source, target = rows["source_image"].iloc[0], rows["target_image"].iloc[0]
    features = {name: store.array(name).astype(np.float32) for name in (source, target)}
    index = len(rows) // 2
    cell = store.grid(source).pixels_to_cells(rows[["source_x", "source_y"]].to_numpy()[index : index + 1])[0]
    similar = heatmap(features[source], cell, features[target], sampling)
    size = pictures.fit(decode(files[target], upright=False, remedy=AGAIN), MAP_SIDE).size
    return {
        "keypoint": index,
        "low": float(similar.min()),
        "high": float(similar.max()),
        "picture": pictures.data_uri(pictures.overlay(similar, store.grid(target), size)),
    }
