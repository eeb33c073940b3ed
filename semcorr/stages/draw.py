"""draw: pictures of a few pairs of each category, best, median and worst, and similarity maps of a few keypoints."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image as PillowImage
from tqdm import tqdm

from semcorr import pck, pictures
from semcorr.datasets.base import decode, read_images
from semcorr.files import write_json
from semcorr.geometry import Grid
from semcorr.graph import Job
from semcorr.matching import heatmaps, normalise, sample
from semcorr.params import Params
from semcorr.provenance import expect, provenance
from semcorr.store import Store

SIDE = 200  # pixels of each image in a picture
MAPS = 2  # keypoints of the median pair whose similarity is drawn


def draw(job: Job, params: Params) -> str:
    """Write the pictures of one backbone, weights and dataset under the grid's first rule, as one JSON file."""
    inputs = {role: expect(job.inputs[role], job.expects[role]) for role in ("matches", "images")}
    matches = pd.read_parquet(job.inputs["matches"])
    settings = params.evaluate
    reference = settings.references[params.datasets[job.cell["dataset"]].format][0]
    threshold = pck.headline(settings.thresholds)
    distance = pck.distances(matches[["predicted_x", "predicted_y"]], matches[["true_x", "true_y"]])
    lengths = matches[reference].to_numpy(float)
    matches = matches.assign(correct=pck.is_correct(distance, lengths, [threshold])[:, 0], error=distance / lengths)
    folder = job.inputs["images"].parent / "images"
    files = {image.id: folder / image.file for image in read_images(job.inputs["images"])}
    shown = {category: ranked(part) for category, part in matches.groupby("category")}
    torch.set_num_threads(1)  # a few small maps
    progress = partial(tqdm, unit="category", desc=" ".join([job.stage, *job.cell.values()]), disable=None)
    with Store(job.inputs["store"], job.expects["store"]) as store, torch.inference_mode():
        inputs["store"] = store.provenance
        sampling = next(value["sampling"] for key, value in job.settings.items() if key.startswith("rules."))
        categories = [
            {
                "category": category,
                "pairs": [_pair(which, rows, files) for which, rows in pairs.items()],
                "maps": _maps(pairs["median"], files, store, sampling),
            }
            for category, pairs in progress(shown.items())
        ]
    write_json(
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
    source, target = (decode(files[rows[f"{side}_image"].iloc[0]]) for side in ("source", "target"))
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


def _maps(rows: pd.DataFrame, files: dict[str, Path], store: Store, sampling: str) -> list[dict[str, Any]]:
    """The similarity maps of a pair's first and middle keypoint."""
    source, target = rows["source_image"].iloc[0], rows["target_image"].iloc[0]
    grids: dict[str, Grid] = {name: store.grid(name) for name in (source, target)}
    features = {name: normalise(torch.from_numpy(store.array(name)).float()) for name in grids}
    images = _pictures(rows, files)
    some = rows.iloc[sorted({0, len(rows) // MAPS})]
    points = some[["source_x", "source_y"]].to_numpy()
    cells = torch.from_numpy(grids[source].pixels_to_cells(points))
    found = heatmaps(sample(features[source], cells, sampling), features[target]).numpy()
    drawn = []
    for row, point, heatmap in zip(some.itertuples(), points, found, strict=True):
        picture = pictures.similarity(
            *images,
            point,
            heatmap,
            grids[target],
            side=SIDE,
            predicted=np.array([row.predicted_x, row.predicted_y]),
            true=np.array([row.true_x, row.true_y]),
        )
        drawn.append(
            {
                "keypoint": row.keypoint,
                "low": float(heatmap.min()),
                "high": float(heatmap.max()),
                "width": picture.width,
                "height": picture.height,
                "picture": pictures.data_uri(picture),
            }
        )
    return drawn
