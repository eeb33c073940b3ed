"""`extract` against a bare loop of the same network over the same images, decoded and resized, already in memory.

The loop is timm's own `forward_intermediates` up to the same block, in the same batches; `extract` also loads the
network, decodes, checks, and writes the store.

    python benchmarks/extract.py
"""

import argparse

import torch
from common import compare, experiment, preset

from semcorr import params
from semcorr.datasets.base import read_image, read_images
from semcorr.networks.backbones import build, load


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--runs", type=int, default=3)
    options = options.parse_args()
    values = preset("pfwillow")
    source = {"kind": "toy", "seed": 0, "images": {"all": options.images // 4}}
    values["datasets"]["pfwillow"] |= {"sources": [source], "expect": "any"}
    values["backbones"]["dinov2_s14"]["weights"] = {"kind": "random", "seed": 0}
    with experiment(values) as run:
        fetched = run("fetch", "pfwillow")
        weights = run("weights", "dinov2_s14", "frozen")
        settings = params.load()
        spec = settings.backbones["dinov2_s14"]
        torch.set_num_threads(settings.threads)
        network = load(build(spec), weights.outputs["tensors"])
        batches: dict[tuple, list[torch.Tensor]] = {}
        for image in read_images(fetched.outputs["images"]):
            pixels, _ = network.preprocess(read_image(fetched.outputs["folder"], image), spec.image_size)
            batches.setdefault(pixels.shape, []).append(pixels)
        loaded = [part for group in batches.values() for part in torch.stack(group).split(settings.runtime.batch_size)]

        def bare() -> None:
            with torch.inference_mode():
                for batch in loaded:
                    network.net.forward_intermediates(
                        batch, indices=[spec.layer], norm=False, intermediates_only=True, stop_early=True
                    )

        ours, theirs = compare(lambda: run("extract", "dinov2_s14", "frozen", "pfwillow"), bare, options.runs)
    count = sum(map(len, loaded))
    print(
        f"extract, ViT-S/14 to block {spec.layer}, {count} images at {spec.image_size} px, median of {options.runs}: "
        f"semcorr extract {count / ours:.2f} images/s, bare timm loop {count / theirs:.2f} images/s, "
        f"ratio {theirs / ours:.2f} (goal: at least 0.9)"
    )


if __name__ == "__main__":
    main()
