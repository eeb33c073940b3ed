"""`match` on a store of SPair-71k test's size against a bare torch loop over the same file.

The store has 486 images of 37 x 28 x 768 float16 and 12,234 pairs of 7 keypoints. The bare loop reads each array once
and keeps all, normalised, in memory, then takes pair by pair: bilinear samples, one matrix product, argmax. Each runs
in a process of its own, so that its peak memory can be told.

    python benchmarks/match.py
"""

import argparse
import os
import resource
import statistics
import sys
import time
from itertools import islice, permutations
from pathlib import Path

import h5py
import numpy as np
import torch
from common import experiment, preset

from semcorr import cli, params
from semcorr.artifacts import store
from semcorr.datasets.base import IMAGE_SCHEMA, PAIR_SCHEMA, Image, Pair, read_pairs, write_index
from semcorr.engine import graph
from semcorr.geometry import Grid

CATEGORIES, IMAGES, PAIRS, KEYPOINTS = 18, 27, 12_234, 7
CHANNELS = 768
GRID = Grid(image_size=(500, 375), resized_size=(518, 388), stride=14)
CELL = ("dinov2_s14", "frozen", "pfwillow")


def write(
    job: graph.Job, categories: int = CATEGORIES, images: int = IMAGES, pairs: int = PAIRS, channels: int = CHANNELS
) -> None:
    """Write the store and the indexes that `job`, a match, reads; `images` are of each category."""
    rng = np.random.default_rng(0)
    ids = [[f"c{category:02d}/{number:03d}" for number in range(images)] for category in range(categories)]
    shape = (*GRID.shape, channels)
    entries = {one: store.Entry(shape=shape, grid=GRID) for group in ids for one in group}
    record = {"stage": "extract", "fingerprint": job.expects["store"], "settings": {}, "inputs": {}}
    with store.create(job.inputs["store"], record, entries, "float16") as writer:
        for one in entries:
            writer.add(one, rng.standard_normal(shape, np.float32).astype(np.float16))

    def points() -> list[list[float]]:
        return (rng.uniform(0, 1, (KEYPOINTS, 2)) * (374, 499)).tolist()

    chosen = islice(((n, pair) for n, group in enumerate(ids) for pair in permutations(group, 2)), pairs)
    known = [
        Pair(
            id=f"{number:06d}",
            category=f"c{category:02d}",
            source=source,
            target=target,
            keypoint_ids=list(map(str, range(KEYPOINTS))),
            source_keypoints=points(),
            target_keypoints=points(),
            target_bbox=[1, 1, 300, 400],
        )
        for number, (category, (source, target)) in enumerate(chosen)
    ]
    height, width = GRID.image_size
    shown = [Image(id=one, file=f"{one}.jpg", category=one[:3], height=height, width=width) for one in entries]
    for role, rows, schema in (("pairs", known, PAIR_SCHEMA), ("images", shown, IMAGE_SCHEMA)):
        write_index(job.inputs[role], rows, schema, record | {"fingerprint": job.expects[role]})


def ours() -> None:
    """The stage."""
    cli.run_stage(cli.parser().parse_args(["match", *CELL, "argmax"]))


@torch.inference_mode()
def bare() -> None:
    """The loop."""
    torch.set_num_threads(params.load().threads)
    job = graph.Graph(params.load()).job("match", *CELL, "argmax")
    pairs = read_pairs(job.inputs["pairs"])
    maps = {}
    with h5py.File(job.inputs["store"]) as file:
        for one in {pair.source for pair in pairs} | {pair.target for pair in pairs}:
            maps[one] = torch.nn.functional.normalize(torch.from_numpy(file[one][()]).float(), dim=-1)
    for pair in pairs:
        points = torch.tensor(pair.source_keypoints)
        grid = 2 * (points + 0.5) / torch.tensor([375.0, 500.0]) - 1
        picked = torch.nn.functional.grid_sample(
            maps[pair.source].permute(2, 0, 1)[None], grid[None, None], align_corners=False, padding_mode="border"
        )
        descriptors = torch.nn.functional.normalize(picked[0, :, 0].T, dim=-1)
        best = (descriptors @ maps[pair.target].flatten(0, 1).T).argmax(dim=1)
        torch.stack([best % 28, best // 28], dim=1)


def apart(function: object) -> tuple[float, float]:
    """Seconds and peak memory in MB of a call in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        start = time.perf_counter()
        function()
        os.write(writing, f"{time.perf_counter() - start}".encode())
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    os.close(writing)
    if status:
        raise SystemExit("failed")
    return float(os.read(reading, 100)), usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=3)
    options = options.parse_args()
    import semcorr.stages.match  # noqa: F401  # imported before the clock starts

    with experiment(preset("pfwillow")):
        if os.fork() == 0:  # what writes the inputs leaves no memory behind
            write(graph.Graph(params.load()).job("match", *CELL, "argmax"))
            os._exit(0)
        os.wait()
        size = Path(f"features/{'/'.join(CELL)}.h5").stat().st_size / 1e6
        results = [(apart(ours), apart(bare)) for _ in range(options.runs)]
    (mine, memory), (other, their_memory) = (
        [statistics.median(values) for values in zip(*side, strict=True)] for side in zip(*results, strict=True)
    )
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"match, {size:.0f} MB store, {PAIRS:,} pairs, {PAIRS * KEYPOINTS:,} keypoints, median of {options.runs}: "
        f"semcorr match {mine:.1f} s, {memory:.0f} MB; bare torch loop {other:.1f} s, {their_memory:.0f} MB; "
        f"ratio {mine / other:.2f} (goal: at most 1.5, under 2,000 MB); {base:.0f} MB of it is Python and torch",
        file=sys.stdout,
    )


if __name__ == "__main__":
    main()
