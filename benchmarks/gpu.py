"""What a GPU is used for, each figure beside its limit or its named alternative in the same run.

- extract: images/s of ViT-B/14 at 518 px in bfloat16, with random tensors in the official file's form, on drawn images;
  against the bare forward pass on images that are already decoded and on the device. The stage's fixed cost, from
  building the network to the last check, is printed beside it.
- match: a store of SPair-71k test's size, 486 images of 37 x 28 x 768 float16 and 12,234 pairs of 7 keypoints; against
  reading the store once and the matrix products alone.
- steps: of the first tuning of the preset spair71k on the cached trunk; against the tail's forward and backward pass
  alone, without a loss, on activations that are already on the device.
- training: 500 of these steps on a stand-in of SPair-71k's size, 1,800 images and 70,958 pairs, and a validation,
  extrapolated to the whole training. Mirrored images, which that tuning does not use, are not cached.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --device cpu --small   # the same code on tiny sizes, to try it
"""

import argparse
import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch
from common import compare, experiment, preset
from match import KEYPOINTS
from match import write as write_match

from semcorr import params
from semcorr.artifacts.store import Store
from semcorr.datasets.base import (
    IMAGE_SCHEMA,
    PAIR_SCHEMA,
    Image,
    Pair,
    read_image,
    read_images,
    read_pairs,
    write_index,
)
from semcorr.datasets.toy import CATEGORIES, render
from semcorr.engine import graph
from semcorr.networks import runtime
from semcorr.networks.backbones import build, load
from semcorr.networks.tail import Tail
from semcorr.networks.trainer import Run, Trainer
from semcorr.params import BackboneSpec
from semcorr.stages import extract as extract_stage

BACKBONE, TUNING = "dinov2_b14", "last1"
SHAPES = ((500, 375), (375, 500), (500, 333), (333, 500), (500, 500))  # width, height: SPair-71k's longer side is 500


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        images, pairs: of the training set.
        held_out, validated: images and pairs of the validation set.
        steps: of the training.
        compared: of these steps, how many are compared with the bare passes.
        match: categories, images of each, pairs, and channels of the store that is matched.
        network: overrides of the backbone; empty for ViT-B/14 at 518 px.
    """

    images: int = 1_800
    pairs: int = 70_958
    held_out: int = 360
    validated: int = 5_384
    steps: int = 500
    compared: int = 50
    match: tuple[int, int, int, int] = (18, 27, 12_234, 768)
    network: dict[str, Any] | None = None


SMALL = Size(
    images=12,
    pairs=60,
    held_out=4,
    validated=8,
    steps=5,
    compared=2,
    match=(2, 3, 12, 48),
    network={"depth": 3, "embed_dim": 48, "num_heads": 3},
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        what: is measured.
        ours, theirs: figures of semcorr and of its alternative.
        unit: of both.
        alternative: in words; empty for none.
        ratio: the first by the second, of times or of rates.
        goal: for the ratio, in words; empty for none.
        memory: peak of the GPU's, in MB; None on a CPU.
        note: anything else.
    """

    what: str
    ours: float
    unit: str
    theirs: float | None = None
    alternative: str = ""
    ratio: float | None = None
    goal: str = ""
    memory: float | None = None
    note: str = ""

    def line(self) -> str:
        """As it is printed."""
        parts = [f"{self.what}: {self.ours:,.2f} {self.unit}"]
        if self.theirs is not None:
            parts.append(f"{self.alternative} {self.theirs:,.2f} {self.unit}, ratio {self.ratio:.2f} ({self.goal})")
        if self.memory is not None:
            parts.append(f"peak GPU memory {self.memory:,.0f} MB")
        return "; ".join([*parts, self.note] if self.note else parts)


class Memory:
    """The peak of a GPU's memory within a block."""

    def __init__(self, device: torch.device):
        self.device = device
        self.peak: float | None = None

    def __enter__(self) -> "Memory":
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated() / 1e6


def done(device: torch.device) -> None:
    """Wait for what the GPU has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def settings(size: Size, device: str) -> dict[str, Any]:
    """The preset spair71k with its first network and tuning alone, and tensors from a file."""
    values = preset("spair71k")
    values["grid"] |= {"backbones": [BACKBONE], "tunings": [TUNING], "weights": ["frozen", TUNING]}
    values["grid"] |= {"datasets": ["spair_test"], "trunks": ["spair_trn", "spair_val", "spair_test"]}
    values["tunings"] = {TUNING: values["tunings"][TUNING]}
    values["fusions"] = {}
    values["backbones"] = {BACKBONE: values["backbones"][BACKBONE]}
    values["backbones"][BACKBONE]["weights"] = {"kind": "file", "path": "official.pth", "sha256": None}
    values["trunk"]["mirrored"] = False
    values["runtime"]["device"] = device
    if size.network is not None:
        values["backbones"][BACKBONE] |= {"overrides": size.network, "image_size": 112, "layer": 2}
        values["trunk"]["blocks"] = 1
        values["threads"] = 1
        values["runtime"] |= {"workers": 1, "batch_size": 4}
    return values


def official(spec: BackboneSpec, path: Path) -> None:
    """Random tensors in the form of Meta's file, which has one more that no features need."""
    tensors = build(spec).net.state_dict()
    width = tensors["cls_token"].shape[-1]
    torch.save({**tensors, "mask_token": torch.zeros(1, width)}, path)


def _drawn(task: tuple[str, int, Path]) -> tuple[str, int, int]:
    """Draw an image; the digest of its file, its height and its width."""
    category, number, path = task
    shape = SHAPES[number % len(SHAPES)]
    render(category, np.random.default_rng(number)).image.resize(shape).save(path, quality=92)
    return hashlib.sha256(path.read_bytes()).hexdigest(), shape[1], shape[0]


def stand_in(name: str, start: int, images: int, pairs: int) -> None:
    """Write what `fetch` writes, for drawn images of SPair-71k's sizes, with pairs and points drawn at random."""
    job = graph.Graph(params.load()).job("fetch", name)
    folder, rng, kinds = job.outputs["folder"], np.random.default_rng(start), list(CATEGORIES)
    folder.mkdir(parents=True)
    ids = [f"{kinds[n % min(len(kinds), max(1, images // 6))]}/{name}_{n:05d}" for n in range(images)]
    for category in {one.split("/")[0] for one in ids}:
        (folder / category).mkdir()
    tasks = [(one.split("/")[0], start + n, folder / f"{one}.jpg") for n, one in enumerate(ids)]
    if images < 100:
        drawn = list(map(_drawn, tasks))
    else:
        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(_drawn, tasks, chunksize=8))
    shown = [
        Image(id=one, file=f"{one}.jpg", category=one.split("/")[0], height=height, width=width, sha256=digest)
        for one, (digest, height, width) in zip(ids, drawn, strict=True)
    ]

    def points(image: Image) -> list[list[float]]:
        return (rng.uniform(0, 1, (KEYPOINTS, 2)) * (image.width - 1, image.height - 1)).tolist()

    groups: defaultdict[str, list[Image]] = defaultdict(list)
    for image in shown:
        groups[image.category].append(image)
    among = [pair for group in groups.values() for pair in permutations(group, 2)]
    chosen = [among[index] for index in sorted(rng.permutation(len(among))[:pairs])]
    known = [
        Pair(
            id=f"{number:06d}",
            category=source.category,
            source=source.id,
            target=target.id,
            keypoint_ids=list(map(str, range(KEYPOINTS))),
            source_keypoints=points(source),
            target_keypoints=points(target),
            target_bbox=[1.0, 1.0, target.width - 1.0, target.height - 1.0],
        )
        for number, (source, target) in enumerate(chosen)
    ]
    record = {"stage": "fetch", "fingerprint": job.fingerprint, "settings": job.settings, "inputs": {}}
    write_index(job.outputs["pairs"], known, PAIR_SCHEMA, record)
    write_index(job.outputs["images"], shown, IMAGE_SCHEMA, record)


def measured_extract(run: Callable[..., graph.Job], device: torch.device, runs: int) -> Row:
    """The loop of `extract` against the network alone."""
    settings_, job = params.load(), graph.Graph(params.load()).job("extract", BACKBONE, "frozen", "spair_test")
    spec = settings_.backbones[BACKBONE]
    network = load(build(spec), job.inputs["tensors"]).to(device)
    folder = job.inputs["images"].parent / "images"
    shapes: defaultdict[tuple, list[torch.Tensor]] = defaultdict(list)
    for image in read_images(job.inputs["images"]):
        pixels, _ = network.preprocess(read_image(folder, image), spec.image_size)
        shapes[tuple(pixels.shape)].append(pixels)
    size = settings_.runtime.batch_size
    loaded = [part.to(device) for group in shapes.values() for part in torch.stack(group).split(size)]
    count, loops, original = sum(map(len, loaded)), [], extract_stage.encode

    def timed(*arguments: Any) -> str:
        start = time.perf_counter()
        said = original(*arguments)
        loops.append(time.perf_counter() - start)
        return said

    def ours() -> None:
        with mock.patch.object(extract_stage, "encode", timed):
            run("extract", BACKBONE, "frozen", "spair_test")

    def bare() -> None:
        with torch.inference_mode(), runtime.autocast(device, spec.compute):
            for batch in loaded:
                network.net.forward_intermediates(
                    batch, indices=[spec.layer], norm=False, intermediates_only=True, stop_early=True
                )
        done(device)

    bare()  # the first pass sets the device up
    stage, network_alone = compare(ours, bare, runs)
    with Memory(device) as memory:
        ours()
    loop = sorted(loops)[len(loops) // 2]
    return Row(
        what=f"extract, {count:,} images at {spec.image_size} px, {spec.compute}",
        ours=count / loop,
        unit="images/s",
        theirs=count / network_alone,
        alternative="the network alone, images on the device",
        ratio=network_alone / loop,
        goal="goal: at least 0.9",
        memory=memory.peak,
        note=f"the stage spends {stage - loop:.1f} s besides",
    )


def measured_match(size: Size, device: torch.device, runs: int) -> Row:
    """The stage `match` against its reading and its products."""
    values = settings(size, device.type)
    with experiment(values) as run:
        cell = (BACKBONE, "frozen", "spair_test", "argmax")
        job = graph.Graph(params.load()).job("match", *cell)
        write_match(job, *size.match)
        pairs = read_pairs(job.inputs["pairs"])
        counts: defaultdict[str, int] = defaultdict(int)
        for pair in pairs:
            counts[pair.target] += len(pair.keypoint_ids)

        @torch.inference_mode()
        def bare() -> None:
            with h5py.File(job.inputs["store"]) as file:
                for image_id, count in counts.items():
                    whole = torch.from_numpy(file[image_id][()]).to(device).float().flatten(0, 1)
                    torch.nn.functional.normalize(whole.new_ones(count, whole.shape[1]), dim=-1) @ whole.T
            done(device)

        run("match", *cell)
        bare()
        ours, theirs = compare(lambda: run("match", *cell), bare, runs)
        with Memory(device) as memory:
            run("match", *cell)
        megabytes = job.inputs["store"].stat().st_size / 1e6
    return Row(
        what=f"match, {len(pairs):,} pairs, a store of {megabytes:,.0f} MB",
        ours=ours,
        unit="s",
        theirs=theirs,
        alternative="reading it once and the products alone",
        ratio=ours / theirs,
        goal="goal: at most 1.2",
        memory=memory.peak,
    )


def measured_training(size: Size, device: torch.device, runs: int) -> list[Row]:
    """Steps on the cached trunk against bare passes, and the time that a whole training takes."""
    settings_, job = params.load(), graph.Graph(params.load()).job("finetune", BACKBONE, TUNING)
    spec, tuning = settings_.backbones[BACKBONE], settings_.tunings[TUNING]
    tail = Tail(spec, settings_.trunk.blocks, device, job.inputs["tensors"])
    trainer = Trainer(
        Run(
            backbone=BACKBONE,
            name=TUNING,
            tuning=tuning,
            pairs=read_pairs(job.inputs["train_pairs"]),
            validation=read_pairs(job.inputs["validate_pairs"]),
            read=lambda _: sys.exit("a step read an image"),  # all are cached
            trunk=settings_.trunk,
            last=Path("last.pt"),
            key={},
            options=settings_.runtime,
        ),
        tail,
        {},
    )
    updates = trainer.batches.updates(1)
    few, first = updates[: size.compared], tail.first
    with Store(job.inputs["train"], None) as trunk, Store(job.inputs["validate"], None) as held_out:
        loaded = []
        for [batch] in few:
            groups: defaultdict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
            for image_id in batch.ids:
                groups[tail._cells(trunk.grid(image_id))].append(torch.from_numpy(trunk.array(image_id)))
            loaded.append([(cells, torch.stack(group).to(device).float()) for cells, group in groups.items()])

        def train(some: list) -> None:
            for update, following in zip(some, [*some[1:], []], strict=True):
                trainer._update(trunk, update, following)
            done(device)

        def bare() -> None:
            for parts in loaded:
                trainer.optimizer.zero_grad()
                for cells, activations in parts:
                    with runtime.autocast(device, spec.compute):
                        features = tail.network.tail(activations, cells, first, spec)
                    features.float().sum().backward()
            done(device)

        train(few)
        bare()
        mine, theirs = compare(lambda: train(few), bare, runs)
        count = len(few)
        loaded.clear()
        with Memory(device) as memory:
            start = time.perf_counter()
            train(updates[: size.steps])
            step = (time.perf_counter() - start) / len(updates[: size.steps])
            start = time.perf_counter()
            trainer._score(held_out)
            validation = time.perf_counter() - start
    whole = trainer.steps * step + (1 + tuning.epochs // tuning.validation.every) * validation
    return [
        Row(
            what=f"steps on the cached trunk, {len(few[0][0].pairs)} pairs each",
            ours=count / mine,
            unit="steps/s",
            theirs=count / theirs,
            alternative="the tail's passes alone, activations on the device",
            ratio=theirs / mine,
            goal="goal: at least 0.85",
            memory=memory.peak,
        ),
        Row(
            what=f"training, {trainer.steps:,} steps and {1 + tuning.epochs} validations",
            ours=whole / 3600,
            unit="h",
            memory=memory.peak,
            note=f"from {min(size.steps, len(updates)):,} steps of {1000 * step:.1f} ms, validation {validation:.1f} s",
        ),
    ]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options.add_argument("--small", action="store_true", help="tiny sizes, whose figures mean nothing")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--out", type=Path, help="write the table as JSON too")
    options = options.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here; on a CPU the script can only be tried: --device cpu --small", file=sys.stderr)
        raise SystemExit(2)
    if options.device == "cpu" and not options.small:
        print("--device cpu is for trying the script: add --small", file=sys.stderr)
        raise SystemExit(2)
    size, device = SMALL if options.small else Size(), torch.device(options.device)
    out = options.out and options.out.absolute()
    with experiment(settings(size, options.device)) as run:
        official(params.load().backbones[BACKBONE], Path("official.pth"))
        for number, (name, images, pairs) in enumerate(
            (
                ("spair_trn", size.images, size.pairs),
                ("spair_val", size.held_out, size.validated),
                ("spair_test", size.images, 1),
            )
        ):
            stand_in(name, 100_000 * number, images, pairs)
        run("weights", BACKBONE, "frozen")
        rows = [measured_extract(run, device, options.runs)]
        for name in ("spair_trn", "spair_val"):
            run("trunk", BACKBONE, name)
        rows += measured_training(size, device, options.runs)
    rows.append(measured_match(size, device, options.runs))
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{gpu}, torch {torch.__version__}, medians of {options.runs}" + (", tiny sizes" if options.small else ""))
    for row in rows:
        print(row.line())
    if out:
        table = {"device": gpu, "torch": torch.__version__, "runs": options.runs, "small": options.small}
        out.write_text(json.dumps(table | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
