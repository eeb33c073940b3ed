"""Draws docs/matches.jpg, the README's picture, from the finished demo: python docs/matches.py."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from semcorr import params, pck
from semcorr.datasets.base import read_images
from semcorr.datasets.decode import decode
from semcorr.engine import graph
from semcorr.report import compare, gallery, pictures

SIDE, GAP, HEAD = 250, 14, 30
WEIGHTS = {"frozen": "frozen network", "last2": "its last two blocks fine-tuned"}
CATEGORIES = ("giraffe", "person", "fish")
BACKBONE, DATASET, RULE = "dinov2_s14", "toy_spair_test", "softargmax"


def main() -> None:
    """Draw the median pair, by the tuned network, of three categories: frozen above, tuned below."""
    experiment = params.load()
    index = graph.Graph(experiment).job("fetch", DATASET).outputs["images"]
    files = {image.id: index.parent / "images" / image.file for image in read_images(index)}
    tables = {name: compare.read(f"{BACKBONE}/{name}/{DATASET}/{RULE}", experiment) for name in WEIGHTS}
    for name, table in tables.items():
        distance, length = pck.errors(table, "bbox", name)
        tables[name] = table.assign(right=distance <= 0.1 * length)
    rows, heads = [], []
    scores = graph.Graph(experiment).job("evaluate", BACKBONE, "last2", DATASET, RULE).outputs["pairs"]
    chosen = gallery.chosen(pd.read_parquet(scores), "PCK@0.10")
    medians = {row["category"]: row["pair"] for row in chosen if row["which"] == "median"}
    pairs = [medians[category] for category in CATEGORIES]
    for name, words in WEIGHTS.items():
        parts = [tables[name][tables[name]["pair"] == pair] for pair in pairs]
        rows.append([_drawn(part, files) for part in parts])
        heads.append(f"{words}: {sum(int(p['right'].sum()) for p in parts)} of {sum(map(len, parts))} right")
    width = sum(image.width for image in rows[0]) + GAP * (len(pairs) - 1)
    height = max(image.height for image in rows[0])
    canvas = Image.new("RGB", (width, 2 * (height + HEAD)), "white")
    for at, (head, images) in enumerate(zip(heads, rows, strict=True)):
        top, left = at * (height + HEAD), 0
        font = ImageFont.load_default(size=19)
        ImageDraw.Draw(canvas).text((4, top + HEAD / 2), head, fill="black", font=font, anchor="lm")
        for image in images:
            canvas.paste(image, (left, top + HEAD))
            left += image.width + GAP
    canvas.save(Path(__file__).with_name("matches.jpg"), quality=82, optimize=True)


def _drawn(rows, files: dict[str, Path]) -> Image.Image:
    images = (decode(files[rows[f"{side}_image"].iloc[0]], upright=False) for side in ("source", "target"))
    source, predicted, true = (
        rows[[f"{name}_x", f"{name}_y"]].to_numpy(float) for name in ("source", "predicted", "true")
    )
    drawn = pictures.matches(*images, source, predicted, side=SIDE, true=true, correct=rows["right"].tolist())
    grey = np.asarray(drawn) == 128  # what a shorter image leaves over
    return Image.fromarray(np.where(grey.all(axis=2, keepdims=True), 255, np.asarray(drawn)).astype(np.uint8))


main()
