"""Estimates of the peak memory of jobs, so that a cluster can be asked for it; see `cluster`.

They are meant to be too high rather than too low, and hold for a job that computes on a CPU; on a GPU, network and
activations are in the GPU's memory instead.
"""

import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semcorr.engine.graph import Job
from semcorr.engine.plan import WIDTH, Costs, Size
from semcorr.matching import CHUNK
from semcorr.networks.backbones.base import Backbone, Blockwise
from semcorr.networks.upsampler import Upsampler
from semcorr.params import ImageBatches

# Bytes of a process with the libraries that a stage imports; torch alone takes most of it.
LIBRARIES = {"fetch": 0.2e9, "evaluate": 0.3e9, "draw": 0.4e9, "report": 0.5e9, "headline": 0.3e9}
TORCH = 1.0e9
SLACK = 1.25  # what the allocator holds beyond what is in use
FLOAT = 4  # bytes of a value while it is computed with
WAITING = 64  # arrays that wait to be written to a store
PAIR, KEYPOINT = 2e3, 0.6e3  # bytes of an annotated pair in memory, and of each of its keypoints
ROW = 2.5e3  # bytes of a keypoint while a table of matches is written or scored


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it.

    Attributes:
        now, peak: of those that exist, and the most that existed at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and count what is new in its results."""
        made = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}  # of which results may be views
        for storage in _storages(made):
            if storage._cdata not in given:
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _forget(self, size: int) -> None:
        self.now -= size


def _storages(tensors: Any) -> list[Any]:
    """What holds the values of some tensors, each once."""
    found = [one.untyped_storage() for one in tree_leaves(tensors) if isinstance(one, Tensor)]
    return list({storage._cdata: storage for storage in found}.values())


class FusedAttention(TorchFunctionMode):
    """Gives what attention returns without its weights, which fused attention never holds as a whole."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run a function, or what stands for attention."""
        if func is functional.scaled_dot_product_attention:
            query, key, value = args[:3]
            return query * (key.mean() * value.mean())
        return func(*args, **(kwargs or {}))


class Footprints:
    """Estimated peak memory of the jobs of one experiment.

    Args:
        costs: know the networks and how large the datasets are.
    """

    def __init__(self, costs: Costs):
        self.costs, self.params = costs, costs.params
        self._peaks: dict[tuple[Any, ...], int] = {}

    def of(self, job: Job) -> float | None:
        """Bytes that one job's processes hold at most; None if its dataset's size is not known yet."""
        sizes = self.costs.sizes_of(job)
        if None in sizes:
            return None
        return LIBRARIES.get(job.stage, TORCH) + SLACK * getattr(self, f"_{job.stage}")(job, *sizes)

    def _tensors(self, name: str, copies: int = 2) -> float:
        """A network, and the file that it is loaded from or, later, its copy in half precision."""
        tensors = self.costs.network(name).net.state_dict().values()
        return copies * FLOAT * sum(tensor.numel() for tensor in tensors)

    def _peak(self, name: str, part: str, side: int, weights: str | None = None) -> int:
        """The most bytes that one square image takes in a network, in float32.

        Args:
            name: of the backbone.
            part: "features", "trunk", "tail", or "training" for the tail and the way back through it.
            side: of the image, in pixels.
            weights: may be a tuning, whose head is run too.
        """
        key = name, part, side, weights
        if key not in self._peaks:
            network, spec = self.costs.network(name), self.params.backbones[name].model_copy(update={"debias": None})
            images = torch.zeros(1, 3, *network.canvas((side, side)), device="meta")
            with torch.device("meta"):
                network.upsampler = self._head(network, name, weights)
            training = part == "training"
            network.requires_grad_(training)
            with FusedAttention(), Live() as live, torch.set_grad_enabled(training):
                if part == "features":
                    network.features(images, spec)
                else:
                    assert isinstance(network, Blockwise), "architectures.py refuses to tune others"
                    cells, stop = network.cells(images), network.stop(spec)
                    first = stop - self.params.trunk.blocks
                    if part == "trunk":
                        network.trunk(images, first)
                    else:
                        shape = 1, *network.activation_shape(cells)
                        held = torch.zeros(shape, device="meta", requires_grad=training)
                        made = network.finished(network.tail(held, cells, first, spec))
                        if training:
                            torch.autograd.grad(made.sum(), held)
            network.requires_grad_(False)
            network.upsampler = None
            self._peaks[key] = live.peak
        return self._peaks[key]

    def _head(self, network: Backbone, name: str, weights: str | None) -> Upsampler | None:
        tuning = self.params.tunings.get(weights or "")
        if tuning is None or tuning.head is None:
            return None
        return Upsampler(network.channels(self.params.backbones[name]), tuning.head)

    def _map(self, name: str, shape: tuple[int, int], weights: str) -> tuple[float, int]:
        """Cells and channels of the features of an image, if it is a square."""
        cells, channels = self.costs.map_of(name, shape, weights)
        return cells * max(shape) / min(shape), channels

    def _encoding(self, images: int, sizes: list[int], peak: float, kept: float, width: int) -> float:
        """A batch in the network and what it gives, the batches decoded ahead, and what waits to be written.

        Args:
            images: of the dataset.
            sizes: of the views, in pixels.
            peak: of one image in the network, in bytes.
            kept: values that are stored of it.
            width: bytes of each of them.
        """
        options = self.params.runtime
        batch = min(images, options.batch_size)
        ahead = 2 + -(-options.workers // options.batch_size) if options.workers else 1
        pixels = 3 * FLOAT * sum(side**2 for side in sizes)
        return batch * ((1 + ahead) * pixels + peak + 2 * FLOAT * kept) + min(images, WAITING) * kept * width

    def _fetch(self, job: Job, dataset: Size) -> float:
        return PAIR * dataset.pairs + KEYPOINT * dataset.keypoints + 10 * 3 * float(math.prod(dataset.shape))

    def _weights(self, job: Job) -> float:
        return self._tensors(job.cell["backbone"], copies=3)  # as built, as downloaded, and renamed

    def _extract(self, job: Job, dataset: Size) -> float:
        name = job.cell["backbone"]
        spec = self.params.backbones[name]
        peak = max(self._peak(name, "features", side) for side in spec.sizes)
        kept = float(math.prod(self._map(name, dataset.shape, "frozen")))
        return self._tensors(name) + self._encoding(dataset.images, spec.sizes, peak, kept, WIDTH[spec.precision])

    def _trunk(self, job: Job, dataset: Size) -> float:
        name, settings = job.cell["backbone"], self.params.trunk
        sizes = self.costs.trunk_sizes(job)
        network = self.costs.network(name)
        assert isinstance(network, Blockwise), "architectures.py refuses to tune others"
        kept = 0.0
        for side in sizes:
            height, width = network.canvas((side, side))
            kept += math.prod(network.activation_shape((height // network.stride, width // network.stride)))
        kept *= 2 if settings.mirrored else 1
        peak = max(self._peak(name, "trunk", side) for side in sizes)
        return self._tensors(name) + self._encoding(dataset.images, sizes, peak, kept, WIDTH[settings.precision])

    def _adapt(self, job: Job, dataset: Size) -> float:
        name, tuning = job.cell["backbone"], job.cell["tuning"]
        spec = self.params.backbones[name]
        peak = max(self._peak(name, "tail", side, tuning) for side in spec.sizes)
        kept = float(math.prod(self._map(name, dataset.shape, tuning)))
        return self._tensors(name) + self._encoding(dataset.images, spec.sizes, 2 * peak, kept, WIDTH[spec.precision])

    def _fuse(self, job: Job, dataset: Size) -> float:
        name = job.cell["fusion"]
        kept = float(math.prod(self._map(name, dataset.shape, job.cell["weights"])))
        return kept * (min(dataset.images, WAITING) * WIDTH[self.params.fusions[name].precision] + 6 * FLOAT)

    def _finetune(self, job: Job, train: Size, validate: Size) -> float:
        """In each process: the tensors and the optimizer's, the pairs, and a step or a validation."""
        name, tuning = job.cell["backbone"], self.params.tunings[job.cell["tuning"]]
        spec, head, by = self.params.backbones[name], job.cell["tuning"], tuning.batches
        cells, channels = self._map(name, train.shape, head)
        side, kept = spec.image_size, cells * channels
        images, pairs = (by.images, by.images**2) if isinstance(by, ImageBatches) else (2 * by.pairs, by.pairs)
        step: float = images * (self._peak(name, "training", side, head) + 4 * FLOAT * kept)
        if tuning.augment is not None and tuning.augment.live(self.params.trunk):
            step += images * self._peak(name, "trunk", side)
        step += 8 * FLOAT * cells * pairs * train.keypoints / max(1, train.pairs)  # heatmaps, and a loss of them
        scored = min(validate.pairs, tuning.validation.pairs or validate.pairs)
        shown = min(validate.images, 2 * scored)
        part = replace(validate, pairs=scored, keypoints=round(validate.keypoints * scored / max(1, validate.pairs)))
        validation: float = min(self.params.runtime.batch_size, shown) * self._peak(name, "tail", side, head)
        validation += shown * kept * WIDTH[spec.precision] + self._matching(part, cells, channels)
        # Gradients, two moments, and the tensors at the start, on average, at their best and twice in passing.
        tuned = 8 * FLOAT * self.costs.tuned(name, tuning)
        annotated = sum(PAIR * one.pairs + KEYPOINT * one.keypoints for one in (train, validate))
        processes = self.params.runtime.processes
        own = self._tensors(name) + tuned + annotated + max(step, validation)
        return processes * own + (processes - 1) * TORCH

    def _matching(self, dataset: Size, cells: float, channels: int) -> float:
        """The descriptors of all keypoints, absent ones too, and one target's features and heatmaps."""
        keypoints = 2 * dataset.keypoints
        at_once = min(CHUNK, keypoints, 4 * keypoints / max(1, dataset.images))
        return FLOAT * (keypoints * channels + 4 * cells * channels + 5 * at_once * cells)

    def _match(self, job: Job, dataset: Size) -> float:
        matching = self._matching(dataset, *self._map(job.cell["backbone"], dataset.shape, job.cell["weights"]))
        return matching + PAIR * dataset.pairs + (KEYPOINT + ROW) * dataset.keypoints

    def _layers(self, job: Job, dataset: Size) -> float:
        """As if all pairs were joined; the maps of all layers are in a file."""
        name, facets = job.cell["backbone"], len(self.params.grid.layers.facets)
        network, side = self.costs.network(name), self.params.backbones[name].image_size
        cells = max((side / stride) ** 2 for stride in network.strides)
        kept = cells * max(network.widths)
        encoding = self._encoding(dataset.images, [side], self._peak(name, "features", side), kept, FLOAT)
        answers = 2 * 8 * facets * network.depth * dataset.keypoints
        tables = PAIR * dataset.pairs + (KEYPOINT + ROW) * dataset.keypoints + self._drawn(dataset)
        return self._tensors(name) + encoding + answers + self._matching(dataset, cells, max(network.widths)) + tables

    def _drawn(self, dataset: Size) -> float:
        """The pairs that each sample of the bootstrap draws, as drawn and as floats."""
        return 2 * 8 * dataset.pairs * self.params.evaluate.bootstrap

    def _evaluate(self, job: Job, dataset: Size) -> float:
        return ROW * 2 * dataset.keypoints + self._drawn(dataset)

    def _draw(self, job: Job, dataset: Size) -> float:
        return ROW * dataset.keypoints + PAIR * dataset.pairs * len(self.params.grid.rules)

    def _report(self, job: Job) -> float:
        """A table of pairs for each cell, pictures for each backbone and weights, and the bootstrap of comparisons."""
        sizes = [one for name in self.params.grid.datasets if (one := self.costs.sizes[name]) is not None]
        cells = len(self.costs.graph.cells["evaluate"]) / max(1, len(self.params.grid.datasets))
        tables = cells * sum(0.5e3 * one.pairs for one in sizes)
        pictures = 8e6 * len(self.costs.graph.cells["draw"])
        return tables + pictures + max(map(self._drawn, sizes), default=0.0)

    _headline = _report
