"""layers: PCK of every layer of a frozen backbone, in one pass over the images, to choose `layer` and `facet`.

Images that pairs join are encoded together, so that only their maps are kept, in a file without a name that goes with
the process.
"""

import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from semcorr import pck
from semcorr.artifacts.files import unwritable
from semcorr.artifacts.progress import progress
from semcorr.artifacts.provenance import provenance, verified, write_result
from semcorr.datasets.base import Image, Pair, read_images, read_pairs
from semcorr.datasets.search import searched
from semcorr.engine.graph import Job
from semcorr.errors import UserError
from semcorr.geometry import Grid, resized_size
from semcorr.matching import match_pairs
from semcorr.networks import runtime
from semcorr.networks.backbones import build, load
from semcorr.networks.backbones.base import NoPositions
from semcorr.networks.encode import batches, versions
from semcorr.params import Params
from semcorr.readouts import readout
from semcorr.tensors import rounded

Key = tuple[int | str, str]  # layer and facet


def layers(job: Job, params: Params) -> str:
    """Write PCK of every layer and facet."""
    inputs = verified(job.inputs, job.expects)
    settings, name, dataset = params.evaluate, params.grid.layers.rule, job.cell["dataset"]
    assert name is not None, "params.py refuses backbones without a rule"
    rule = params.rules[name]
    pairs = [pair for pair in read_pairs(job.inputs["pairs"]) if pair.keypoint_ids]
    if not pairs:
        raise UserError(f"{job.inputs['pairs']}: no pair of this dataset has a keypoint, so there is nothing to score")
    images = {image.id: image for image in read_images(job.inputs["images"])}
    every, allowed = EveryLayer(job, params), searched(rule, images)
    predicted: dict[Key, list[np.ndarray]] = {key: [np.empty(0)] * len(pairs) for key in every.keys}
    joined = components(pairs)
    total = sum(len(_ids(pairs, numbers)) for numbers in joined)
    with progress(total=total, unit="image", desc=job.title) as bar, torch.inference_mode():
        for numbers in joined:
            queries = [(pairs[n].source, pairs[n].target, pairs[n].points("source")) for n in numbers]
            with unwritable(job.outputs["curve"]), Scratch(job.outputs["curve"].parent) as scratch:
                every.fill(scratch, [images[image_id] for image_id in _ids(pairs, numbers)], bar.update)
                for key in every.keys:
                    maps = every.reader(scratch, key)
                    answers = match_pairs(queries, maps, rule.sampling, readout(rule), searched=allowed)
                    for number, (points, _) in zip(numbers, answers, strict=True):
                        predicted[key][number] = points
    reference = settings.references[params.datasets[dataset].format][0]
    score = _scorer(pairs, images, reference, params)
    rows = [
        {"layer": layer, "facet": facet, "stride": every.stride(layer), **score(predicted[layer, facet])}
        for layer, facet in every.keys
    ]
    write_result(
        job.outputs["curve"],
        {
            "backbone": job.cell["backbone"],
            "dataset": dataset,
            "model": every.network.name,
            "num_pairs": len(pairs),
            "reference": reference,
            "rule": name,
            "layers": rows,
            "provenance": provenance(job, inputs, versions=versions(), **runtime.facts(every.device)),
        },
    )
    return _summary(job, rows, pck.threshold_key(settings.headline), name)


def _summary(job: Job, rows: list[dict[str, Any]], key: str, rule: str) -> str:
    best = max(rows, key=lambda row: row["overall_keypoint"][key]["mean"])
    lines = [f"{' '.join(job.cell.values())}: {key} by {rule} is highest at layer {best['layer']} ({best['facet']})"]
    for facet in dict.fromkeys(row["facet"] for row in rows):
        own = [(row["layer"], 100 * row["overall_keypoint"][key]["mean"]) for row in rows if row["facet"] == facet]
        lines.append(f"{facet}: " + ", ".join(f"{layer} {mean:.1f}" for layer, mean in own))
    return "\n".join(lines)


def components(pairs: list[Pair]) -> list[list[int]]:
    """The numbers of pairs that are joined by common images, directly or through others; in order of their first."""
    parent: dict[str, str] = {}

    def root(image_id: str) -> str:
        while parent.setdefault(image_id, image_id) != image_id:
            parent[image_id] = parent[parent[image_id]]
            image_id = parent[image_id]
        return image_id

    for pair in pairs:
        parent[root(pair.source)] = root(pair.target)
    found: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        found.setdefault(root(pair.source), []).append(number)
    return list(found.values())


def _ids(pairs: list[Pair], numbers: list[int]) -> list[str]:
    return sorted({image_id for number in numbers for image_id in (pairs[number].source, pairs[number].target)})


class Scratch:
    """Arrays in a file without a name; the disk has its space back when the block ends, however it ends."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__
        self._places: dict[Any, tuple[int, tuple[int, ...], np.dtype]] = {}

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, name: Any, array: np.ndarray) -> None:
        """Keep an array under a name."""
        self._places[name] = self._file.seek(0, 2), array.shape, array.dtype
        self._file.write(np.ascontiguousarray(array).data)

    def get(self, name: Any) -> np.ndarray:
        """The array of a name."""
        offset, shape, kind = self._places[name]
        array = np.empty(shape, kind)
        self._file.seek(offset)
        count = self._file.readinto(array.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]  # it is buffered
        assert count == array.nbytes, f"{count} of {array.nbytes} bytes were read"
        return array


class EveryLayer:
    """A frozen backbone of which all layers are read.

    Attributes:
        network: on its device.
        keys: its layers and facets, in the order of their output.
    """

    def __init__(self, job: Job, params: Params):
        self.device = runtime.device(params.runtime, params.threads)
        self.spec = params.backbones[job.cell["backbone"]].model_copy(update={"layer": 0, "facet": "token"})
        self.network = load(build(self.spec), job.inputs["tensors"]).to(self.device)
        self.options, self._title = params.runtime, job.title
        self._folder = job.inputs["images"].parent / "images"
        self._precision_key = f"backbones.{job.cell['backbone']}.precision"
        self._facets = params.grid.layers.facets
        neck = ["neck"] if self.network.neck_width and "token" in self._facets else []
        self._layers: list[int | str] = [*range(self.network.depth), *neck]
        self.keys: list[Key] = [
            (layer, facet) for facet in self._facets for layer in self._layers if layer != "neck" or facet == "token"
        ]

    def stride(self, layer: int | str) -> int:
        """Pixels between the cells of a layer."""
        return self.network.strides[-1 if layer == "neck" else int(layer)]

    def grid(self, image: Image, layer: int | str) -> Grid:
        """Where the cells of a layer lie on an image."""
        size = image.height, image.width
        resized = resized_size(size, self.spec.image_size)
        return Grid(image_size=size, resized_size=resized, stride=self.stride(layer))

    def fill(self, scratch: Scratch, images: list[Image], done: Callable[[], Any]) -> None:
        """Keep the maps of some images, and their grids, as (image id, layer, facet) and as they would be stored."""
        self._images = {image.id: image for image in images}
        with runtime.autocast(self.device, self.spec.compute):
            sizes = [self.spec.image_size]
            for batch, [pixels] in batches(self.network, images, self._folder, sizes, self.options, set()):
                self._fill_batch(scratch, batch, pixels.to(self.device))
                for _ in batch:
                    done()

    def _fill_batch(self, scratch: Scratch, batch: list[Image], pixels: Tensor) -> None:
        for layer, facet, maps in self.network.maps(pixels, self.spec, self._layers, self._facets):
            own = self.spec.model_copy(update={"layer": layer, "facet": facet})
            features = maps
            if own.debias is not None:
                with contextlib.suppress(NoPositions):  # then there is nothing to remove
                    features = self.network.debiased(maps, pixels, own)
            for image, whole in zip(batch, features, strict=True):
                height, width = self.grid(image, layer).shape
                valid = whole.permute(1, 2, 0)[:height, :width]
                why = partial(str, f"layer {layer} ({facet}). Set {self._precision_key}: float32")
                array = rounded(valid, self.spec.precision, f"{self._title}: {image.id}", why)
                scratch.put((image.id, layer, facet), array.cpu().numpy())

    def reader(self, scratch: Scratch, key: Key) -> Callable[[str], tuple[Tensor, Grid]]:
        """A function from an image id to its map (h, w, C) of a layer and facet, and its grid."""

        def read(image_id: str) -> tuple[Tensor, Grid]:
            array = torch.from_numpy(scratch.get((image_id, *key))).to(self.device)
            return array, self.grid(self._images[image_id], key[0])

        return read


def _scorer(
    pairs: list[Pair], images: dict[str, Image], reference: str, params: Params
) -> Callable[[list[np.ndarray]], dict[str, Any]]:
    """A function from the predicted points of each pair to PCK: averages, intervals, by threshold."""
    settings = params.evaluate
    counts = [len(pair.keypoint_ids) for pair in pairs]
    true = [pair.points("target") for pair in pairs]
    lengths = [
        pck.references(
            points, bbox=pair.target_bbox, image_size=(images[pair.target].height, images[pair.target].width)
        )[reference]
        for pair, points in zip(pairs, true, strict=True)
    ]
    known = pd.DataFrame(np.concatenate(true), columns=["true_x", "true_y"])
    known["pair"] = np.repeat([pair.id for pair in pairs], counts)
    known[reference] = np.repeat(np.array(lengths, float), counts)
    number = np.repeat(np.arange(len(pairs)), counts)
    category = pd.factorize(np.array([pair.category for pair in pairs], object))[0]

    def score(predicted: list[np.ndarray]) -> dict[str, Any]:
        points = pd.DataFrame(np.concatenate(predicted), columns=["predicted_x", "predicted_y"])
        error = pck.errors(known.join(points), reference, "layers")
        correct = pck.is_correct(*error, settings.thresholds)
        scores = pck.scores(correct, number, category, samples=settings.bootstrap, seed=settings.seed)
        return {f"overall_{name}": found.to_dict(settings.thresholds) for name, found in scores.items()}

    return score
