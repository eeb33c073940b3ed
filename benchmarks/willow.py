"""PF-WILLOW's 900 pairs end to end against encoding both images of every pair, as evaluation loops usually do.

Ours is the stages fetch, extract, match and evaluate, one after the other, in one process. The alternative loads both
images of a pair, encodes both, and matches, pair by pair, with timm's own forward pass; it is measured on every
`--every`-th pair and scaled. Both are run in turn, and the median is taken.

    python benchmarks/willow.py --data PF-dataset
"""

import argparse
from pathlib import Path

import torch
from common import DATA, compare, experiment, preset

from semcorr import params
from semcorr.datasets.base import read_pairs
from semcorr.datasets.decode import decode
from semcorr.matching import heatmaps
from semcorr.networks.backbones import build, load
from semcorr.readouts.argmax import argmax
from semcorr.tensors import normalise, sample


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA / "PF-dataset")
    options.add_argument("--every", type=int, default=20)
    options.add_argument("--runs", type=int, default=3)
    options = options.parse_args()
    values = preset("pfwillow")
    values["datasets"]["pfwillow"]["sources"] = [{"kind": "path", "path": str(options.data.resolve())}]
    values["backbones"]["dinov2_s14"]["weights"] = {"kind": "random", "seed": 0}
    with experiment(values) as run:
        weights = run("weights", "dinov2_s14", "frozen")
        settings = params.load()
        spec = settings.backbones["dinov2_s14"]
        torch.set_num_threads(settings.threads)
        cell = ("dinov2_s14", "frozen", "pfwillow")

        def ours() -> None:
            run("fetch", "pfwillow")
            run("extract", *cell)
            run("match", *cell, "argmax")
            run("evaluate", *cell, "argmax")

        run("fetch", "pfwillow")
        network = load(build(spec), weights.outputs["tensors"])

        def encode(image_id: str) -> tuple:
            image = decode(f"data/pfwillow/images/{image_id}.png", upright=False)
            pixels, grid = network.preprocess(image, spec.image_size)
            [features] = network.net.forward_intermediates(
                pixels[None], indices=[spec.layer], norm=False, intermediates_only=True, stop_early=True
            )
            return normalise(features[0].permute(1, 2, 0)[: grid.shape[0], : grid.shape[1]]), grid

        pairs = read_pairs(Path("data/pfwillow/pairs.parquet"))
        some = pairs[:: options.every]

        @torch.inference_mode()
        def theirs() -> None:
            for pair in some:
                (source, first), (target, second) = encode(pair.source), encode(pair.target)
                cells = first.pixels_to_cells(pair.points("source"))
                answer = argmax(heatmaps(sample(source, torch.from_numpy(cells), "bilinear"), target))
                second.answers(answer.double().numpy())

        mine, other = compare(ours, theirs, options.runs)
        other *= len(pairs) / len(some)
    print(
        f"PF-WILLOW, {len(pairs)} pairs at {spec.image_size} px, ViT-S/14, median of {options.runs}: semcorr "
        f"{mine:.1f} s, encoding both images of every pair {other:.0f} s (from {len(some)} pairs), "
        f"{other / mine:.1f} times faster (goal: 15)"
    )


if __name__ == "__main__":
    main()
