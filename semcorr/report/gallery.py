"""Pictures of a category: its best, median and worst pair, and similarity maps of a few keypoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as PillowImage

from semcorr.artifacts.store import Store
from semcorr.datasets.decode import AGAIN, decode
from semcorr.geometry import Grid
from semcorr.report import pictures

SIDE = 200  # pixels of each image in a picture
MAPS = 2  # keypoints of the median pair whose similarity is drawn


def ranked(part: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of a category's best, median and worst pair: by PCK, then by median error, then by name."""
    pairs = part.groupby("pair").agg(correct=("correct", "mean"), error=("error", "median")).reset_index()
    order = pairs.sort_values(["correct", "error", "pair"], ascending=[False, True, True])["pair"].tolist()
    chosen = {"best": order[0], "median": order[(len(order) - 1) // 2], "worst": order[-1]}
    return {which: part[part["pair"] == pair] for which, pair in chosen.items()}


def _pictures(rows: pd.DataFrame, files: dict[str, Path]) -> tuple[PillowImage.Image, PillowImage.Image]:
    paths = [files[rows[f"{side}_image"].iloc[0]] for side in ("source", "target")]
    source, target = (decode(path, upright=False, remedy=AGAIN) for path in paths)
    return source, target


def pair_picture(which: str, rows: pd.DataFrame, files: dict[str, Path]) -> dict[str, Any]:
    """One pair's picture and the facts for its caption."""
    source, predicted, true = (rows[[f"{name}_x", f"{name}_y"]].to_numpy() for name in ("source", "predicted", "true"))
    correct = rows["correct"].tolist()
    picture = pictures.matches(*_pictures(rows, files), source, predicted, side=SIDE, true=true, correct=correct)
    return {
        "which": which,
        "pair": rows["pair"].iloc[0],
        "right": sum(correct),
        "keypoints": len(rows),
        "width": picture.width,
        "height": picture.height,
        "picture": pictures.data_uri(picture),
    }


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


def similarity_maps(rows: pd.DataFrame, files: dict[str, Path], store: Store, sampling: str) -> list[dict[str, Any]]:
    """The similarity maps of a pair's first and middle keypoint."""
    source, target = rows["source_image"].iloc[0], rows["target_image"].iloc[0]
    grids: dict[str, Grid] = {name: store.grid(name) for name in (source, target)}
    features = {name: store.array(name).astype(np.float32) for name in grids}
    images = _pictures(rows, files)
    drawn = rows.iloc[sorted({0, len(rows) // MAPS})]
    points = drawn[["source_x", "source_y"]].to_numpy()
    cells = grids[source].pixels_to_cells(points)
    heatmaps = [heatmap(features[source], cell, features[target], sampling) for cell in cells]
    maps = []
    for row, point, similar in zip(drawn.itertuples(), points, heatmaps, strict=True):
        picture = pictures.similarity(
            *images,
            point,
            similar,
            grids[target],
            side=SIDE,
            predicted=np.array([row.predicted_x, row.predicted_y]),
            true=np.array([row.true_x, row.true_y]),
        )
        maps.append(
            {
                "keypoint": row.keypoint,
                "low": float(similar.min()),
                "high": float(similar.max()),
                "width": picture.width,
                "height": picture.height,
                "picture": pictures.data_uri(picture),
            }
        )
    return maps
