"""draw: pictures of a few pairs of each category, best, median and worst, and similarity maps of a few keypoints."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image as PillowImage
from tqdm import tqdm

from semcorr import pck
from semcorr.artifacts.provenance import expect, provenance, read_table, write_result
from semcorr.artifacts.store import Store
from semcorr.datasets.base import read_images
from semcorr.datasets.decode import AGAIN, decode
from semcorr.engine.graph import Job
from semcorr.geometry import Grid
from semcorr.params import Params
from semcorr.report import pictures

SIDE = 200  # pixels of each image in a picture
MAPS = 2  # keypoints of the median pair whose similarity is drawn


def draw(job: Job, params: Params) -> str:
    """Write the pictures of one backbone, weights and dataset under the grid's first rule, as one JSON file."""
    inputs = {role: expect(job.inputs[role], job.expects[role]) for role in ("matches", "images")}
    matches = read_table(job.inputs["matches"]).to_pandas()
    settings = params.evaluate
    reference = settings.references[params.datasets[job.cell["dataset"]].format][0]
    threshold = pck.headline(settings.thresholds)
    distance, lengths = pck.errors(matches, reference, job.inputs["matches"])
    matches = matches.assign(correct=pck.is_correct(distance, lengths, [threshold])[:, 0], error=distance / lengths)
    folder = job.inputs["images"].parent / "images"
    files = {image.id: folder / image.file for image in read_images(job.inputs["images"])}
    shown = {category: ranked(part) for category, part in matches.groupby("category")}
    progress = partial(tqdm, unit="category", desc=job.title, disable=None)
    with Store(job.inputs["store"], job.expects["store"]) as store:
        inputs["store"] = store.provenance
        [rule] = params.rules.values()  # the one that is drawn
        categories = [
            {
                "category": category,
                "pairs": [_pair(which, rows, files) for which, rows in pairs.items()],
                "maps": _maps(pairs["median"], files, store, rule.sampling),
            }
            for category, pairs in progress(shown.items())
        ]
    write_result(
        job.outputs["gallery"],
        {"threshold": pck.threshold_key(threshold), "categories": categories, "provenance": provenance(job, inputs)},
    )
    return f"{' '.join(job.cell.values())}: {3 * len(categories)} pairs"


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


def _pair(which: str, rows: pd.DataFrame, files: dict[str, Path]) -> dict[str, Any]:
    """One pair's picture and what its caption says."""
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
    """Cosine similarity (h, w) of one point of a map (h, w, C) with every cell of another.

    As matching.sample and matching.heatmaps, and held to them by a test, but without torch: importing that would take
    ten times as long as the drawing.

    Args:
        source: of any length.
        cell: (2,) x y in the source's cells.
        target: of any length.
        sampling: "bilinear" or "nearest".
    """
    maps = [one / np.maximum(np.linalg.norm(one, axis=-1, keepdims=True), 1e-12) for one in (source, target)]
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


def _maps(rows: pd.DataFrame, files: dict[str, Path], store: Store, sampling: str) -> list[dict[str, Any]]:
    """The similarity maps of a pair's first and middle keypoint."""
    source, target = rows["source_image"].iloc[0], rows["target_image"].iloc[0]
    grids: dict[str, Grid] = {name: store.grid(name) for name in (source, target)}
    features = {name: store.array(name).astype(np.float32) for name in grids}
    images = _pictures(rows, files)
    some = rows.iloc[sorted({0, len(rows) // MAPS})]
    points = some[["source_x", "source_y"]].to_numpy()
    cells = grids[source].pixels_to_cells(points)
    found = [heatmap(features[source], cell, features[target], sampling) for cell in cells]
    drawn = []
    for row, point, similar in zip(some.itertuples(), points, found, strict=True):
        picture = pictures.similarity(
            *images,
            point,
            similar,
            grids[target],
            side=SIDE,
            predicted=np.array([row.predicted_x, row.predicted_y]),
            true=np.array([row.true_x, row.true_y]),
        )
        drawn.append(
            {
                "keypoint": row.keypoint,
                "low": float(similar.min()),
                "high": float(similar.max()),
                "width": picture.width,
                "height": picture.height,
                "picture": pictures.data_uri(picture),
            }
        )
    return drawn
