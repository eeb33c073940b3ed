"""`evaluate` on matches of SPair-71k test's size against the same bootstrap by scipy.

12,234 pairs with 88,328 keypoints of 486 images, and 60,000 that targets lack; the demo's thresholds, 1,000 bootstrap
samples. The alternative is scipy.stats.bootstrap of the three averages alone, by numpy sums over the drawn pairs, of
each threshold: no reading, breakdown or writing.

    python benchmarks/evaluate.py
"""

import argparse

import numpy as np
import pandas as pd
import pyarrow as pa
from common import compare, experiment, preset
from scipy.stats import bootstrap

from semcorr import pck
from semcorr.artifacts.provenance import write_table
from semcorr.datasets.base import IMAGE_SCHEMA, Image, write_index
from semcorr.datasets.sides import SPAIR71K

PAIRS, KEYPOINTS, CATEGORIES, IMAGES, ABSENT = 12_234, 88_328, 18, 486, 60_000
NAMES = [str(number) for number in range(15)]  # of the keypoints of an image
CELL = ("dinov2_s14", "frozen", "toy_spair_test", "argmax")


def matches() -> pd.DataFrame:
    """Made-up matches of the right size; each pair has its own difficulty."""
    rng = np.random.default_rng(0)
    counts = np.full(PAIRS, KEYPOINTS // PAIRS)
    counts[: KEYPOINTS - counts.sum()] += 1
    pair = np.repeat(np.arange(PAIRS), counts)
    true = rng.uniform(0, 400, (KEYPOINTS, 2))
    predicted = true + rng.normal(size=(KEYPOINTS, 2)) * rng.uniform(5, 60, PAIRS)[pair][:, None]
    place = np.arange(KEYPOINTS) - np.repeat(np.cumsum(counts) - counts, counts)  # within its pair
    table = pd.DataFrame({"pair": np.char.mod("%06d", pair), "keypoint": place.astype(str)})
    table["category"] = np.array(sorted(SPAIR71K))[pair * CATEGORIES // PAIRS]
    table[["source_x", "source_y"]] = table[["true_x", "true_y"]] = true
    table[["predicted_x", "predicted_y"]] = predicted
    table["bbox"], table["bbox_kp"], table["image"] = 300.0, 250.0, 500.0
    table["similarity"] = rng.uniform(0, 1, KEYPOINTS)
    table["source_image"] = table["target_image"] = np.char.mod("%03d", pair * IMAGES // PAIRS)
    table["subset"] = pd.Series([None] * KEYPOINTS, dtype="string")
    for name, levels in (
        ("viewpoint_variation", 3),
        ("scale_variation", 3),
        ("truncation", 4),
        ("occlusion", 4),
        ("mirror", 2),
    ):
        table[name] = rng.integers(0, levels, PAIRS)[pair].astype("int8")
    return table


def beside(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Image]]:
    """What targets lack, and the images with all their keypoints."""
    rng = np.random.default_rng(1)
    absent = table.sample(ABSENT, random_state=1)[["pair", "category"]].assign(keypoint="14")
    absent["similarity"] = rng.uniform(0, 0.8, ABSENT)
    points = rng.uniform(0, 400, (IMAGES, len(NAMES), 2)).tolist()
    sizes = {"category": "cat", "height": 400, "width": 400}
    return absent, [
        Image(id=f"{at:03d}", file="x.jpg", keypoint_ids=NAMES, keypoints=points[at], **sizes) for at in range(IMAGES)
    ]


def by_scipy(table: pd.DataFrame, settings: dict) -> None:
    """The intervals of the three averages."""
    correct = pck.is_correct(*pck.errors(table, "bbox", "table"), settings["thresholds"])
    hits, counts = pck.by_pair(correct, pd.factorize(table["pair"])[0])
    category = pd.factorize(table.drop_duplicates("pair")["category"])[0]

    def by_category(index: np.ndarray, column: int) -> np.ndarray:
        return np.array(
            [
                np.mean(np.bincount(category[row], hits[row, column]) / np.bincount(category[row], counts[row]))
                for row in np.atleast_2d(index)
            ]
        )

    columns = range(len(settings["thresholds"]))
    statistics = [
        lambda index, axis, c=column: hits[index, c].sum(axis) / counts[index].sum(axis) for column in columns
    ]
    statistics += [lambda index, axis, c=column: (hits[index, c] / counts[index]).mean(axis) for column in columns]
    statistics += [lambda index, axis, c=column: by_category(index, c) for column in columns]
    for statistic in statistics:
        bootstrap(
            (np.arange(PAIRS),),
            statistic,
            n_resamples=settings["bootstrap"],
            method="percentile",
            batch=100,
            rng=np.random.default_rng(settings["seed"]),
        )


def main() -> None:
    """Run both and print their seconds and the ratio."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3)
    runs = arguments.parse_args().runs
    values = preset("demo")
    values["evaluate"]["sides"] = {"spair": "spair71k"}
    with experiment(values) as run:
        from semcorr import params
        from semcorr.engine import graph

        job = graph.Graph(params.load()).job("evaluate", *CELL)
        table = matches()
        absent, images = beside(table)
        record = {"fingerprint": job.expects["matches"], "stage": "match", "settings": {}}
        record["inputs"] = {"pairs": {"stage": "fetch", "settings": {}, "inputs": {}}}
        for role, rows in (("matches", table), ("absent", absent)):
            write_table(job.inputs[role], pa.Table.from_pandas(rows, preserve_index=False), record)
        fetched = {"fingerprint": job.expects["images"], "stage": "fetch", "settings": {}, "inputs": {}}
        write_index(job.inputs["images"], images, IMAGE_SCHEMA, fetched)
        ours, theirs = compare(lambda: run("evaluate", *CELL), lambda: by_scipy(table, values["evaluate"]), runs)
    print(f"evaluate, {KEYPOINTS:,} keypoints of {PAIRS:,} pairs, {values['evaluate']['bootstrap']} samples:")
    print(f"  semcorr {ours:.2f} s, scipy.stats.bootstrap {theirs:.2f} s: {ours / theirs:.2f} of its time")


if __name__ == "__main__":
    main()
