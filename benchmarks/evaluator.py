"""SPair-71k's five animals against the loop of public evaluators, on the same network at the same size: time and PCK.

Ours is the stages fetch, extract, match and evaluate of val, one after the other, with the demo's network, frozen, in
one view, by argmax; images keep their aspect ratio. The alternative, written with torch and timm alone, loads both
images of a pair, squashes each to a square, encodes both, and matches; it takes every n-th pair, and is scaled to all.
PCK@0.10 of both is that of the keypoints of those pairs. Before, archive and weights are unpacked.

    python benchmarks/evaluator.py --data SPair-71k-animals.tar.gz
"""

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from common import DATA, experiment, preset, seconds
from PIL import Image
from safetensors.torch import load_file

from semcorr import params
from semcorr.datasets import spair
from semcorr.datasets.archive import unpack
from semcorr.engine import graph

BACKBONE, LAYER, ALPHA = "dinov2_s14", 9, 0.10
CELL = (BACKBONE, "frozen", "spair_val")
STAGES = {"fetch": CELL[-1:], "extract": CELL, "match": (*CELL, "argmax"), "evaluate": (*CELL, "argmax")}
MEAN, STD = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@torch.inference_mode()
def evaluator(root: Path, lines: Sequence[str], network: torch.nn.Module, size: int) -> np.ndarray:
    """Whether each keypoint of some pairs is found, pair by pair."""
    correct = []

    def encode(path: Path) -> torch.Tensor:
        squashed = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1) / 255
        [found] = network.forward_intermediates(
            ((pixels - MEAN) / STD)[None], indices=[LAYER], norm=False, intermediates_only=True, stop_early=True
        )
        return torch.nn.functional.normalize(found, dim=1)  # (1, C, h, w)

    for line in lines:
        pair = json.loads((root / "PairAnnotation/val" / f"{line}.json").read_text())
        folder = root / "JPEGImages" / pair["category"]
        source, target = (encode(folder / pair[key]) for key in ("src_imname", "trg_imname"))
        source_size, target_size = (torch.tensor(pair[key][:2]) for key in ("src_imsize", "trg_imsize"))
        points, true = (torch.tensor(pair[key], dtype=torch.float32) for key in ("src_kps", "trg_kps"))
        places = 2 * (points + 0.5) / source_size - 1
        picked = torch.nn.functional.grid_sample(
            source, places[None, None], align_corners=False, padding_mode="border"
        )[0, :, 0]
        best = (torch.nn.functional.normalize(picked, dim=0).T @ target[0].flatten(1)).argmax(dim=1)
        side = target.shape[-1]
        cells = torch.stack([best % side, best // side], dim=1)
        answers = (cells + 0.5) / side * target_size - 0.5
        x0, y0, x1, y1 = pair["trg_bndbox"]
        correct.append((answers - true).norm(dim=1) <= ALPHA * max(x1 - x0, y1 - y0))
    return torch.cat(correct).numpy()


def frozen(options: argparse.Namespace, archive: Path) -> dict[str, Any]:
    """The demo's network in one view on val, without training."""
    values = preset("spair_s14")
    spec = values["backbones"][BACKBONE]
    spec |= {"image_size": options.size, "layer": LAYER, "views": ["plain"], "compute": "float32"}
    if options.random:
        spec["weights"] = {"kind": "random", "seed": 0}
    values["backbones"] = {BACKBONE: spec}
    values["tunings"], values["threads"] = {}, options.threads
    values["runtime"] |= {"device": "cpu", "workers": options.threads}
    values["grid"] |= {"tunings": [], "weights": ["frozen"], "rules": ["argmax"], "train": None, "validate": None}
    values["grid"] |= {"trunks": [], "layers": values["grid"]["layers"] | {"backbones": [], "datasets": []}}
    source = {"kind": "path", "path": "SPair-71k" if archive.is_file() else str(archive)}
    values["datasets"] = {
        "spair_val": values["datasets"]["spair_val"] | {"sources": [source], "expect": "any", "limit": options.limit}
    }
    return values


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA / "SPair-71k-animals.tar.gz")
    options.add_argument("--size", type=int, default=336)
    options.add_argument("--pairs", type=int, default=200, help="of the alternative")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--limit", type=int, help="take only so many pairs, to try this script")
    options.add_argument("--random", action="store_true", help="random weights: no download, and no PCK to speak of")
    options = options.parse_args()
    archive = options.data.resolve()
    with experiment(frozen(options, archive)) as run:
        root = spair.find(unpack(archive, Path("SPair-71k")) if archive.is_file() else archive)
        weights = run("weights", BACKBONE, "frozen")
        network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True).eval()
        network.load_state_dict(load_file(weights.outputs["tensors"]))
        torch.set_num_threads(options.threads)
        lines = (root / "Layout/large/val.txt").read_text().split()[: options.limit]
        some = lines[:: max(1, len(lines) // options.pairs)]

        def ours() -> None:
            for stage, cell in STAGES.items():
                run(stage, *cell)

        for stage in STAGES:  # imported before the clock starts
            importlib.import_module(f"semcorr.stages.{stage}")
        mine = seconds(ours) / len(lines)
        correct: list[np.ndarray] = []
        theirs = seconds(lambda: correct.append(evaluator(root, some, network, options.size))) / len(some)
        table = pd.read_parquet(graph.Graph(params.load()).job("match", *STAGES["match"]).outputs["matches"])
    table = table[table["pair"].isin(some)]
    away = np.hypot(table["predicted_x"] - table["true_x"], table["predicted_y"] - table["true_y"])
    [their_correct] = correct
    assert len(table) == len(their_correct), "both answer the same keypoints"
    print(
        f"SPair-71k, val of five categories, {len(lines):,} pairs at {options.size} px, ViT-S/14 to block {LAYER}"
        f"{' with random tensors' if options.random else ''}: semcorr {mine * len(lines):.1f} s, {1e3 * mine:.1f} ms a "
        f"pair; a public evaluator's loop {theirs * len(lines):.0f} s, {1e3 * theirs:.0f} ms a pair (from {len(some)} "
        f"pairs), {theirs / mine:.1f} times as long; PCK@{ALPHA:.2f} on these {len(table):,} keypoints: semcorr "
        f"{100 * (away <= ALPHA * table['bbox']).mean():.1f} %, squashed to a square {100 * their_correct.mean():.1f} %"
    )


if __name__ == "__main__":
    main()
