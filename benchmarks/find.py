"""`semcorr find` on PF-WILLOW: one image of each sub-set labelled, the nine others found; then three labelled.

Every image is the labelled one in turn, so one labelled image makes the 900 pairs of the benchmark. With three, the
images are drawn from a seed, ten times for each sub-set. PCK per keypoint, reference bbox_kp.

    python benchmarks/find.py --data PF-dataset
"""

import argparse
from pathlib import Path

import numpy as np
from common import DATA

from semcorr import pck
from semcorr.api import images
from semcorr.api.find import Support
from semcorr.datasets.pfwillow import read

THRESHOLDS = [0.05, 0.10, 0.20]
DRAWS, SEED = 10, 0


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA / "PF-dataset")
    options.add_argument("--backbone", default="demo")
    options.add_argument("--weights", default="frozen")
    options.add_argument("--rule", default="softargmax")
    options.add_argument("--image-size", type=int)
    options = options.parse_args()
    images.KEPT = 100  # every image of the benchmark is encoded once
    matcher = images.Matcher(options.backbone, options.weights, options.rule, image_size=options.image_size)
    benchmark = read(options.data)
    points = {image.id: dict(zip(image.keypoint_ids, image.keypoints, strict=True)) for image in benchmark.images}
    files = {image.id: benchmark.root / image.file for image in benchmark.images}
    groups: dict[str, list[str]] = {}
    for image in benchmark.images:
        groups.setdefault(image.id.rpartition("/")[0], []).append(image.id)
    rng = np.random.default_rng(SEED)
    single = [[one] for group in groups.values() for one in group]
    three = [
        [group[index] for index in rng.permutation(len(group))[:3]] for group in groups.values() for _ in range(DRAWS)
    ]
    group_of = {id_: group for group in groups.values() for id_ in group}
    print("| labelled images | combined by | " + " | ".join(f"PCK@{value:.2f}" for value in THRESHOLDS) + " | points |")
    print("|---:|---|" + "---:|" * (len(THRESHOLDS) + 1))
    for count, combine, sets in ((1, "", single), (3, "mean", three), (3, "nearest", three)):
        correct = []
        for labelled in sets:
            support = Support(
                [(files[id_], points[id_]) for id_ in labelled], combine=combine or "mean", matcher=matcher
            )
            for id_ in [id_ for id_ in group_of[labelled[0]] if id_ not in labelled]:
                found = support.find(files[id_])
                true = np.array([points[id_][name] for name in support.names])
                away = pck.distances(np.array([found.points[name] for name in support.names]), true)
                limits = np.full(len(true), np.ptp(true, axis=0).max())
                correct.append(pck.is_correct(away, limits, THRESHOLDS))
        rates = 100 * np.concatenate(correct).mean(axis=0)
        total = len(np.concatenate(correct))
        print(f"| {count} | {combine} | " + " | ".join(f"{rate:.1f}" for rate in rates) + f" | {total:,} |", flush=True)


if __name__ == "__main__":
    main()
