"""What would run now and why, and estimates of its time and disk space.

The jobs that are not current would run; see `current`. Times are the floating point operations of network passes over a
rate measured on this machine in a second or two; they are meant to tell minutes from days.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from semcorr.artifacts.files import project_path
from semcorr.artifacts.provenance import expect
from semcorr.datasets import pfpascal, spair, toy
from semcorr.datasets.base import read_images, read_pairs
from semcorr.datasets.listing import count
from semcorr.engine.current import Current
from semcorr.engine.graph import Graph, Job
from semcorr.engine.run_cache import restorable
from semcorr.errors import UserError
from semcorr.geometry import resized_size
from semcorr.networks import runtime
from semcorr.networks.backbones import build
from semcorr.networks.backbones.base import Backbone, Blockwise
from semcorr.networks.upsampler import Upsampler
from semcorr.params import (
    COCOSpec,
    DatasetSpec,
    ImageBatches,
    Keep,
    Params,
    Part,
    PathSource,
    PFPascalSpec,
    PFWillowSpec,
    SPairSpec,
    ToySource,
    Tuning,
)

# Seconds of start-up per stage; the others load a network.
START = {"validate": 0.3, "fetch": 2.0, "fuse": 3.0, "match": 3.0, "evaluate": 1.0, "draw": 1.5}
START |= {"report": 2.0, "headline": 1.0}
LOADED = 5.0
RESTORING = 1.0  # seconds for a job whose outputs DVC has
CACHED = "from cache (dvc repro)"
BACKWARD = 2.0  # cost of a backward pass relative to a forward one
WIDTH = {"float16": 2, "float32": 4}  # bytes
KEYPOINT_BYTES = 150  # per row of matches
SPAIR = {"trn": (990, 53_340, 10_652), "val": (324, 5_384, 1_070), "test": (486, 12_234, 2_438)}  # images, large, small
WILLOW = {"car": 3, "duck": 1, "motorbike": 3, "winebottle": 3}  # sub-sets
PFPASCAL = {"trn": 1_470, "val": 308, "test": 299}  # pairs, without mirrored copies
KEYPOINTS = {"spair": 7.2, "pfwillow": 10, "pfpascal": 7, "ap10k": 11, "coco": 9}  # per pair, as usual


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a dataset is.

    Attributes:
        images, pairs, keypoints: counts.
        shape: (height, width) of a typical image, in pixels.
        known: counted in its index, rather than estimated before it is fetched.
    """

    images: int
    pairs: int
    keypoints: int
    shape: tuple[int, int]
    known: bool


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time and disk space of one job.

    Attributes:
        flops: floating point operations of network passes.
        seconds: everything else.
        disk: bytes of its outputs.
    """

    flops: float = 0.0
    seconds: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job that would run, or be restored from DVC's cache at no cost but time."""

    job: Job
    why: str
    cost: Cost | None
    cached: bool = False


def _is_asked_for(index: Job) -> bool:
    """Whether an index was made with the current parameters."""
    try:
        expect(index.outputs["images"], index.fingerprint)
    except UserError:
        return False
    return True


def size(dataset: DatasetSpec, index: Job) -> Size | None:
    """The size of a dataset, estimated if it is not fetched yet; None if that is not possible."""
    if index.outputs["images"].exists() and index.outputs["pairs"].exists() and _is_asked_for(index):
        images, pairs = read_images(index.outputs["images"]), read_pairs(index.outputs["pairs"])
        shape = tuple(np.median([(image.height, image.width) for image in images], axis=0).astype(int).tolist())
        keypoints = sum(len(pair.keypoint_ids) for pair in pairs)
        return Size(images=len(images), pairs=len(pairs), keypoints=keypoints, shape=shape, known=True)
    for source in dataset.sources:
        if isinstance(source, ToySource):
            return _limited(_within(_toy(dataset, source), dataset.part), dataset.limit)
        if isinstance(source, PathSource) and (path := project_path(source.path)).exists():
            if counted := count(path, dataset):
                part = None if isinstance(dataset, COCOSpec) else dataset.part  # which its pairs are counted in
                return _within(_estimate(dataset, *counted), part)
            break
    return _limited(_within(_published(dataset), dataset.part), dataset.limit)


def _estimate(dataset: DatasetSpec, images: int, pairs: int, shape: tuple[int, int]) -> Size:
    """A size whose keypoints are as many as usual in the format."""
    keypoints = round(KEYPOINTS[dataset.format] * pairs)
    return Size(images=images, pairs=pairs, keypoints=keypoints, shape=shape, known=False)


def _published(dataset: DatasetSpec) -> Size | None:
    """The size of a published benchmark, from its authors' counts; None if it is none."""
    if dataset.expect == "any":
        return None
    match dataset:
        case SPairSpec():
            images, large, small = SPAIR[dataset.split]
            share = len(dataset.categories) / spair.CATEGORIES if dataset.categories else 1
            pairs = share * (large if dataset.layout == "large" else small)
            return _estimate(dataset, round(share * images), round(pairs), (375, 500))
        case PFWillowSpec():
            names = dataset.subsets or [f"{name}({part})" for name, parts in WILLOW.items() for part in range(parts)]
            subsets = sum(not dataset.categories or name.split("(")[0] in dataset.categories for name in names)
            return _estimate(dataset, 10 * subsets, 90 * subsets, (225, 300))
        case PFPascalSpec():
            pairs = PFPASCAL[dataset.split] * (
                len(dataset.categories) / len(pfpascal.CATEGORIES) if dataset.categories else 1
            )
            return _estimate(dataset, round(2 * pairs), round(pairs), (375, 500))
    return None


def _within(whole: Size | None, part: Part | None) -> Size | None:
    """The size of a seeded part of the images; both images of a pair must be in it."""
    if whole is None or part is None:
        return whole
    share = part.fraction if part.keep == "part" else 1 - part.fraction
    pairs, keypoints = (round(share**2 * count) for count in (whole.pairs, whole.keypoints))
    return replace(whole, images=round(share * whole.images), pairs=pairs, keypoints=keypoints)


def _limited(whole: Size | None, limit: int | None) -> Size | None:
    """The size of the first `limit` pairs."""
    if whole is None or limit is None or limit >= whole.pairs:
        return whole
    keypoints = round(whole.keypoints * (limit / whole.pairs))
    return replace(whole, images=min(whole.images, 2 * limit), pairs=limit, keypoints=keypoints)


def _toy(dataset: DatasetSpec, source: ToySource) -> Size:
    """The estimated size of a drawn dataset: nearly every pair of a category shares enough keypoints."""
    drawn = [name.split("(")[0] for name in (toy.CATEGORIES if dataset.format == "spair" else toy.WILLOW)]
    kinds = sum(dataset.categories is None or name in dataset.categories for name in drawn)
    each = source.images.get(dataset.split if dataset.format == "spair" else "all", 0)
    if isinstance(dataset, PFWillowSpec) and dataset.subsets:
        chosen = [name.split("(")[0] for name in dataset.subsets]
        kinds = sum(dataset.categories is None or name in dataset.categories for name in chosen)
    pairs = kinds * each * (each - 1)
    return Size(images=kinds * each, pairs=pairs, keypoints=10 * pairs, shape=toy.SIZES[-1], known=False)


class Pass(NamedTuple):
    """What one view of an image costs.

    Attributes:
        trunk, tail: operations.
        held: values of its activations in a trunk.
        cells: of the features of all views, on the grid of the largest.
        channels: of these.
    """

    trunk: float
    tail: float
    held: int
    cells: int
    channels: int

    @property
    def values(self) -> int:
        """How many a store of features holds."""
        return self.cells * self.channels


class Costs:
    """Estimated costs of the jobs of one experiment."""

    def __init__(self, graph: Graph):
        self.graph, self.params = graph, graph.params
        self.sizes = {name: size(spec, graph.job("fetch", name)) for name, spec in self.params.datasets.items()}
        self._networks: dict[str, Backbone] = {}
        self._passes: dict[tuple[Any, ...], Pass] = {}

    def of(self, job: Job) -> Cost | None:
        """The cost of one job, start-up included; None if its dataset's size is not known yet."""
        sizes = self.sizes_of(job)
        if None in sizes:
            return None
        cost = getattr(self, f"_{job.stage}", lambda *_: Cost())(job, *sizes)
        return replace(cost, seconds=cost.seconds + START.get(job.stage, LOADED))

    def look_again(self) -> None:
        """Count the datasets that have been fetched since."""
        for name, before in self.sizes.items():
            index = self.graph.job("fetch", name)
            if (before is None or not before.known) and index.outputs["pairs"].exists():
                self.sizes[name] = size(self.params.datasets[name], index)

    def sizes_of(self, job: Job) -> list[Size | None]:
        """The sizes of the datasets that a job reads; None for those that are not known yet."""
        if job.stage == "finetune":
            return [self.sizes[name] for name in (self.params.grid.train, self.params.grid.validate_) if name]
        return [self.sizes[job.cell["dataset"]]] if "dataset" in job.cell else []

    def network(self, name: str) -> Backbone:
        """A backbone without tensors, for counting."""
        if name not in self._networks:
            with torch.device("meta"):
                self._networks[name] = build(self.params.backbones[name])
        return self._networks[name]

    def _pass(self, name: str, shape: tuple[int, int], weights: str | None = None, size: int | None = None) -> Pass:
        """What one view of an image costs, at the backbone's own size if no other is given."""
        key = name, shape, weights, size
        if key not in self._passes:
            network, spec = self.network(name), self.params.backbones[name]
            tuning = None if weights is None else self.params.tunings.get(weights)
            if tuning is not None and tuning.head is not None:
                with torch.device("meta"):
                    network.upsampler = Upsampler(network.channels(spec), tuning.head)
            resized = resized_size(shape, size or spec.image_size)
            images = torch.zeros(1, 3, *network.canvas(resized), device="meta")
            parts: list[Callable[[], object]] = [lambda: network.features(images, spec)]
            held = 0
            if isinstance(network, Blockwise):
                held = int(np.prod(network.activation_shape(network.cells(images))))
                parts.insert(0, partial(network.trunk, images, network.stop(spec) - self.params.trunk.blocks))
            counts = [] if held else [0.0]  # what does not run block by block is all tail
            with torch.device("meta"), torch.inference_mode():
                for part in parts:
                    with FlopCounterMode(display=False) as counter:
                        part()
                    counts.append(float(counter.get_total_flops()))
            height, width = network.grid(shape, resized_size(shape, max(spec.sizes))).shape
            self._passes[key] = Pass(
                trunk=counts[0],
                tail=counts[1] - counts[0],
                held=held,
                cells=height * width,
                channels=network.channels(spec) * len(spec.views),
            )
            network.upsampler = None
        return self._passes[key]

    def map_of(self, name: str, shape: tuple[int, int], weights: str) -> tuple[int, int]:
        """How many cells and channels a backbone's store, or a fusion's, holds of an image."""
        if (fusion := self.params.fusions.get(name)) is None:
            only = self._pass(name, shape, weights)
            return only.cells, only.channels
        a, b = (self._pass(member, shape, weights) for member in (fusion.a, fusion.b))
        return max(a.cells, b.cells), a.channels + b.channels

    def _fetch(self, job: Job, dataset: Size) -> Cost:
        # Decoding and copying, and verifying whole lists of pairs if the benchmark's own are expected.
        return Cost(seconds=0.01 * dataset.images + 0.0002 * dataset.pairs, disk=100e3 * dataset.images)

    def _weights(self, job: Job) -> Cost:
        count = sum(tensor.numel() for tensor in self.network(job.cell["backbone"]).net.state_dict().values())
        return Cost(disk=4 * count)

    def _extract(self, job: Job, dataset: Size) -> Cost:
        name = job.cell["backbone"]
        spec = self.params.backbones[name]
        passes = [self._pass(name, dataset.shape, None, look.size) for look in spec.looks]
        flops = sum(one.trunk + one.tail for one in passes)
        return Cost(flops=dataset.images * flops, disk=dataset.images * passes[0].values * WIDTH[spec.precision])

    def trunk_sizes(self, job: Job) -> list[int]:
        """The sizes at which a trunk is stored, in pixels."""
        others = [] if job.cell["dataset"] == self.params.grid.train else self.params.trunk.sizes
        return sorted({self.params.backbones[job.cell["backbone"]].image_size, *others})

    def _trunk(self, job: Job, dataset: Size) -> Cost:
        name, settings = job.cell["backbone"], self.params.trunk
        passes = [self._pass(name, dataset.shape, None, size) for size in self.trunk_sizes(job)]
        seen = dataset.images * (2 if settings.mirrored else 1)
        flops, held = sum(one.trunk for one in passes), sum(one.held for one in passes)
        return Cost(flops=seen * flops, disk=seen * held * WIDTH[settings.precision])

    def _adapt(self, job: Job, dataset: Size) -> Cost:
        name = job.cell["backbone"]
        spec = self.params.backbones[name]
        passes = [self._pass(name, dataset.shape, job.cell["tuning"], look.size) for look in spec.looks]
        flops = sum(one.tail for one in passes)
        return Cost(flops=dataset.images * flops, disk=dataset.images * passes[0].values * WIDTH[spec.precision])

    def _fuse(self, job: Job, dataset: Size) -> Cost:
        name = job.cell["fusion"]
        values = dataset.images * math.prod(self.map_of(name, dataset.shape, job.cell["weights"]))
        return Cost(seconds=2e-8 * values, disk=values * WIDTH[self.params.fusions[name].precision])

    def tuned(self, name: str, tuning: Tuning) -> int:
        """How many values a tuning trains."""
        network = self.network(name)
        assert isinstance(network, Blockwise), "architectures.py refuses to tune others"
        modules = network.tuned_modules(tuning.blocks, self.params.backbones[name])
        if tuning.head is not None:
            with torch.device("meta"):
                modules = [*modules, Upsampler(network.channels(self.params.backbones[name]), tuning.head)]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    def _finetune(self, job: Job, train: Size, validate: Size) -> Cost:
        name, tuning = job.cell["backbone"], self.params.tunings[job.cell["tuning"]]
        once = self._pass(name, train.shape, job.cell["tuning"])
        tail = once.tail * tuning.blocks / self.params.trunk.blocks
        seen = train.images if isinstance(tuning.batches, ImageBatches) else 2 * train.pairs
        augment = tuning.augment
        live = once.trunk if augment and augment.live(self.params.trunk) else 0.0
        keep = tuning.keep or Keep(anchor=None, average=None, distil=None)
        further = (keep.anchor is not None) + (1 - keep.distil.after if keep.distil else 0.0)  # forward passes
        scored = validate.images * self._pass(name, validate.shape, job.cell["tuning"]).tail
        scored *= tuning.epochs // tuning.validation.every + 1
        flops = tuning.epochs * seen * (live + tail + further * (live + tail) + BACKWARD * tail) + scored
        copies = 5  # best, and in last.pt: tensors, two moments and best
        return Cost(flops=flops, disk=copies * 4 * self.tuned(name, tuning))

    def _match(self, job: Job, dataset: Size) -> Cost:
        values = math.prod(self.map_of(job.cell["backbone"], dataset.shape, job.cell["weights"]))
        return Cost(flops=2.0 * dataset.keypoints * values, disk=KEYPOINT_BYTES * dataset.keypoints)

    def _layers(self, job: Job, dataset: Size) -> Cost:
        name, facets = job.cell["backbone"], len(self.params.grid.layers.facets)
        network = self.network(name)
        last = self.params.backbones[name].model_copy(update={"layer": network.depth - 1, "facet": "token"})
        resized = resized_size(dataset.shape, last.image_size)
        images = torch.zeros(1, 3, *network.canvas(resized), device="meta")
        with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network.features(images, last)
        cells = [math.prod(-(-side // stride) for side in resized) for stride in network.strides]
        values = facets * sum(count * width for count, width in zip(cells, network.widths, strict=True))
        scored = self._evaluate(job, dataset).seconds * facets * network.depth / 2  # PCK without the other measures
        flops = dataset.images * float(counter.get_total_flops()) + 2.0 * dataset.keypoints * values
        return Cost(flops=flops, seconds=scored, disk=5e3 * facets * network.depth)

    def _evaluate(self, job: Job, dataset: Size) -> Cost:
        return Cost(seconds=4e-8 * dataset.keypoints * self.params.evaluate.bootstrap, disk=50e3)

    def _draw(self, job: Job, dataset: Size) -> Cost:
        return Cost(seconds=0.5, disk=1e6)


def rate(device: torch.device, compute: str, threads: int, seconds: float = 1.0) -> float:
    """Operations per second that this machine reaches on matrix products of the size used in networks."""
    kind, before = getattr(torch, compute), torch.get_num_threads()
    left, right = torch.randn(2048, 768, device=device, dtype=kind), torch.randn(768, 3072, device=device, dtype=kind)

    def run() -> None:
        torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()

    torch.set_num_threads(threads)
    try:
        run()
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            run()
            count += 1
        took = time.perf_counter() - start
    finally:
        torch.set_num_threads(before)
    # A network reaches about half the rate of its products alone: normalisation, softmax, copies, decoding.
    return 0.5 * count * 2 * 2048 * 768 * 3072 / took


def speed_here(params: Params) -> tuple[float, torch.device]:
    """Operations per second of this machine with an experiment's first backbone, and on which device."""
    device = runtime.pick(params.runtime.device)
    return rate(device, params.backbones[params.grid.backbones[0]].compute, params.threads), device


def steps(params: Params, *, restores: bool = True) -> list[Step]:
    """All jobs that would run.

    Args:
        params: the experiment.
        restores: whether the engine restores from DVC's cache what it holds, as `dvc repro` does.
    """
    graph = Graph(params)
    current, costs = Current(graph), Costs(graph)
    cached = restorable(graph, current) if restores else set()
    return [
        Step(job=job, why=CACHED, cost=Cost(seconds=RESTORING), cached=True)
        if job.name in cached
        else Step(job=job, why=current.stale[job.name], cost=costs.of(job))
        for job in graph.jobs()
        if job.name in current.stale
    ]


def describe(planned: list[Step], speed: float, where: str, every: bool) -> list[str]:
    """The plan as text: a line per stage, or per job, and the sum."""
    if not planned:
        return ["Nothing would run: every output exists and matches params.yaml, the code and the data."]
    rows: dict[str, list[Step]] = {}
    for step in planned:
        rows.setdefault(step.job.title if every else step.job.stage, []).append(step)
    width = max(map(len, rows))
    lines = [f"{'':{width}}  jobs   network passes      time       disk  why (of the first)"]
    lines += [f"{name:{width}}  {_sum(steps, speed)}  {_why(steps)}" for name, steps in rows.items()]
    lines.append(f"{'all':{width}}  {_sum(planned, speed)}  one job after another, {where}")
    if any(step.cost is None for step in planned):
        lines.append("* without jobs on datasets whose size is known only once they are fetched")
    return lines


def _why(steps: list[Step]) -> str:
    """Why the first of some jobs would run, and how many would only be restored."""
    run = [step.why for step in steps if not step.cached]
    if not run:
        return CACHED
    return run[0] if len(run) == len(steps) else f"{run[0]}; {len(steps) - len(run)} {CACHED}"


def _sum(steps: list[Step], speed: float) -> str:
    """The total cost of some jobs."""
    costs = [step.cost for step in steps if step.cost is not None]
    flops, disk = sum(cost.flops for cost in costs), sum(cost.disk for cost in costs)
    time_ = tqdm.format_interval(sum(cost.seconds for cost in costs) + flops / speed)
    star = "*" if len(costs) < len(steps) else " "
    return f"{len(steps):4}  {flops / 1e12:11,.1f} TFLOP  {time_:>8}{star} {tqdm.format_sizeof(disk):>8}B"


def plan(params: Params, *, tflops: float | None, every: bool) -> list[str]:
    """The plan, with times for this machine or for one that reaches `tflops` in networks."""
    if tflops is not None:
        speed, where = tflops * 1e12, f"at {tflops:g} TFLOP/s as given"
    else:
        speed, device = speed_here(params)
        where = f"at {speed / 1e12:.2g} TFLOP/s as measured on this machine ({device.type})"
    return describe(steps(params), speed, where, every)
