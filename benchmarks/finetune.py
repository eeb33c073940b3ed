"""Training steps on the cached trunk against running the whole network, and pair-dense batches against pair by pair.

The last 2 of 12 blocks of ViT-S/14 at 224 px. A step takes 7 images of one category and trains on all 42 ordered pairs
among them. The first alternative runs the frozen blocks too, on images already decoded; the second takes the same 42
pairs one at a time, encoding both images of each through the cached trunk, and averages their gradients.

    python benchmarks/finetune.py
"""

import argparse

import torch
from common import compare, experiment, preset

from semcorr import params
from semcorr.artifacts.store import Store
from semcorr.datasets.base import read_image, read_images, read_pairs
from semcorr.networks.tail import Tail
from semcorr.networks.training import Batch, Batches, Tuned, loss


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=5)
    options = options.parse_args()
    values = preset("demo")
    values["backbones"]["dinov2_s14"] |= {"layer": 11, "weights": {"kind": "random", "seed": 0}}
    values["datasets"]["toy_spair_trn"]["sources"][0]["images"] = {"trn": 7, "val": 2, "test": 2}
    with experiment(values) as run:
        fetched = run("fetch", "toy_spair_trn")
        weights = run("weights", "dinov2_s14", "frozen")
        cached = run("trunk", "dinov2_s14", "toy_spair_trn")
        settings = params.load()
        spec, tuning = settings.backbones["dinov2_s14"], settings.tunings["last2"]
        torch.set_num_threads(settings.threads)
        tail = Tail(spec, 2, torch.device("cpu"), weights.outputs["tensors"])
        tuned = Tuned(tail.network, spec, tuning)
        optimizer = torch.optim.AdamW(tuned.tensors.values(), lr=1e-5)
        images = {image.id: image for image in read_images(fetched.outputs["images"])}
        decoded = {id_: read_image(fetched.outputs["folder"], image) for id_, image in images.items()}
        [batch] = max(
            Batches(read_pairs(fetched.outputs["pairs"]), tuning).updates(1), key=lambda update: len(update[0].pairs)
        )

        with Store(cached.outputs["store"], None) as trunk:

            def step(batches: list[Batch], *, live: bool) -> None:
                optimizer.zero_grad()
                for batch in batches:
                    if live:
                        maps = tail.forward_live({id_: decoded[id_] for id_ in batch.ids}, spec.image_size)
                    else:
                        maps = tail.forward(trunk, batch.ids)
                    (loss(maps, batch, tuning) / len(batches)).backward()
                optimizer.step()

            singles = [Batch(ids=[pair.source, pair.target], pairs=[pair], seed=0) for pair in batch.pairs]
            dense, live = compare(lambda: step([batch], live=False), lambda: step([batch], live=True), options.runs)
            again, apart = compare(lambda: step([batch], live=False), lambda: step(singles, live=False), options.runs)
    print(
        f"finetune, last 2 of 12 blocks of ViT-S/14 at {spec.image_size} px, {len(batch.ids)} images, "
        f"{len(batch.pairs)} pairs a step, median of {options.runs}: cached trunk {1 / dense:.2f} steps/s, whole "
        f"network {1 / live:.2f} steps/s, {live / dense:.1f} times (goal: 4); pair by pair {1 / apart:.2f} steps/s, "
        f"pair-dense {apart / again:.1f} times (goal: 3)"
    )


if __name__ == "__main__":
    main()
