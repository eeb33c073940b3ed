"""The parts of fine-tuning: trained tensors, batches, augmentation, loss and learning rate."""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageEnhance
from torch import Tensor, nn
from torch.nn.utils import parametrize

from semcorr.datasets.base import Pair
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.matching import by_image, heatmaps
from semcorr.networks import losses
from semcorr.networks.backbones.base import Blockwise
from semcorr.networks.upsampler import PREFIX, Upsampler
from semcorr.params import Augment, BackboneSpec, ImageBatches, LoRA, Tuning
from semcorr.tensors import normalise, onto, sample

Maps = dict[str, tuple[Tensor, Grid]]  # image id -> feature map (h, w, C), and its grid


class Tuned:
    """The trained tensors of a network; the others are frozen.

    Args:
        network: its tuned modules are unfrozen, or get low-rank updates; it gets the tuning's head if it has none.
        spec: of the backbone.
        tuning: which blocks, and how.

    Attributes:
        tensors: the trained ones by name; those of the head start with `PREFIX`.
    """

    def __init__(self, network: Blockwise, spec: BackboneSpec, tuning: Tuning):
        self.net = network.net
        modules = network.tuned_modules(tuning.blocks, spec)
        self._merged: list[str] = []
        if tuning.lora is None:
            for module in modules:
                module.requires_grad_(True)
        else:
            self._add_lora(modules, tuning.lora)
        self.tensors = {name: tensor for name, tensor in self.net.named_parameters() if tensor.requires_grad}
        self.head = _head(network, spec, tuning)
        if self.head is not None:
            self.tensors |= {PREFIX + name: tensor for name, tensor in self.head.named_parameters()}

    def _add_lora(self, modules: list[nn.Module], lora: LoRA) -> None:
        names = {module: name for name, module in self.net.named_modules()}
        for module in modules:
            for path, layer in module.named_modules():
                if isinstance(layer, nn.Linear) and path.rpartition(".")[2] in lora.targets:
                    self._merged.append(f"{names[layer]}.weight")
                    parametrize.register_parametrization(layer, "weight", _LowRank(layer.weight, lora))
                    parts: Any = layer.parametrizations
                    parts.weight.original.requires_grad_(False)
        if not self._merged:
            targets = " or ".join(lora.targets)
            raise UserError(f"params.yaml: tunings: lora.targets: no tuned block has a layer {targets}")

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """The trained tensors by the network's own names, with low-rank updates merged."""
        merged = {name: name.rpartition(".") for name in self._merged}
        tensors = {name: getattr(self.net.get_submodule(path), last) for name, (path, _, last) in merged.items()}
        kept = {name: tensor for name, tensor in self.tensors.items() if not merged or name.startswith(PREFIX)}
        return {name: tensor.detach().cpu().clone() for name, tensor in {**tensors, **kept}.items()}

    def groups(self, tuning: Tuning) -> list[dict[str, Any]]:
        """The trained tensors as groups of the optimizer, each with its `factor` on the learning rate."""
        own = [tensor for name, tensor in self.tensors.items() if not name.startswith(PREFIX)]
        groups: list[dict[str, Any]] = [{"params": own, "factor": 1.0}]
        if self.head is not None and tuning.head is not None:
            groups.append({"params": list(self.head.parameters()), "factor": tuning.head.learning_rate})
        return groups

    @torch.no_grad()
    def put(self, tensors: dict[str, Tensor]) -> None:
        """Set the trained tensors."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def values(self) -> dict[str, Tensor]:
        """A copy of the trained tensors."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}


def _head(network: Blockwise, spec: BackboneSpec, tuning: Tuning) -> Upsampler | None:
    """The network's head, to be trained: the one that it was loaded with, or a new one."""
    there, asked, width = network.upsampler, tuning.head, network.channels(spec)
    if there is not None and (asked is None or (there.upsample, there.channels) != (asked.upsample, asked.channels)):
        size = f"{{upsample: {there.upsample}, channels: {there.channels}}}"
        raise UserError(f"params.yaml: tunings: head: the tuning that it starts from has a head; allowed: {size}")
    if asked is None:
        return None
    if there is None:
        network.upsampler = Upsampler(width, asked).to(network.device)
    assert network.upsampler is not None
    return network.upsampler.requires_grad_(True)


class _LowRank(nn.Module):
    """weight + alpha / rank * up @ down; `up` starts at zero, so training starts from the weight itself.

    Source: LoRA, Hu et al., ICLR 2022. For so few lines, peft would require transformers and accelerate.
    """

    def __init__(self, weight: Tensor, lora: LoRA):
        super().__init__()
        self.scale = lora.alpha / lora.rank
        self.down = nn.Parameter(torch.empty(lora.rank, weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], lora.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The input of one forward and backward pass.

    Attributes:
        ids: images, each encoded once.
        pairs: annotated pairs among them.
        seed: of its random draws.
    """

    ids: list[str]
    pairs: list[Pair]
    seed: int


class Batches:
    """The batches of each epoch, in the epoch's own random order.

    Args:
        pairs: of the training set.
        tuning: `batches` sets how they are grouped, `accumulate` how many form one update.
    """

    def __init__(self, pairs: list[Pair], tuning: Tuning):
        self.pairs = [pair for pair in pairs if pair.keypoint_ids]
        if not self.pairs:
            raise UserError("the training set has no pair with a keypoint; see grid.train, its `limit`, and hold_outs")
        self.tuning = tuning
        self.by_category: dict[str, dict[tuple[str, str], Pair]] = defaultdict(dict)
        for pair in self.pairs:
            self.by_category[pair.category][pair.source, pair.target] = pair
        self.images = {
            category: sorted({image_id for key in members for image_id in key})
            for category, members in self.by_category.items()
        }

    def updates(self, epoch: int) -> list[list[Batch]]:
        """An epoch's updates, each a list of batches whose gradients are averaged."""
        batches, size = list(self._batches(epoch)), self.tuning.accumulate
        return [batches[at : at + size] for at in range(0, len(batches), size)]

    def count(self) -> int:
        """Updates of the whole training; epochs may differ, since image groups without a pair are skipped."""
        return sum(len(self.updates(epoch)) for epoch in range(1, self.tuning.epochs + 1))

    def describe(self) -> str:
        """The size of an epoch, in words."""
        updates = self.updates(1)
        seen = sum(len(batch.pairs) for update in updates for batch in update)
        return f"an epoch has {len(updates):,} updates and sees {seen:,} of {len(self.pairs):,} pairs"

    def _batches(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self.tuning.seed, epoch])
        by = self.tuning.batches
        groups = self._by_images(rng, by.images) if isinstance(by, ImageBatches) else self._by_pairs(rng, by.pairs)
        for number, (ids, pairs) in enumerate(groups):
            yield Batch(ids=ids, pairs=pairs, seed=zlib.crc32(f"{self.tuning.seed} {epoch} {number}".encode()))

    def _by_images(self, rng: np.random.Generator, size: int) -> list[tuple[list[str], list[Pair]]]:
        """Several images of one category each, with all annotated ordered pairs among them; every image once."""
        groups = []
        for category, ids in self.images.items():
            order = [ids[index] for index in rng.permutation(len(ids))]
            for part in np.array_split(np.arange(len(order)), -(-len(order) // size)):
                group = [order[index] for index in part]
                among = [self.by_category[category].get((a, b)) for a in group for b in group if a != b]
                groups.append((group, [pair for pair in among if pair is not None]))
        return [groups[index] for index in rng.permutation(len(groups)) if groups[index][1]]

    def _by_pairs(self, rng: np.random.Generator, size: int) -> list[tuple[list[str], list[Pair]]]:
        """Several pairs each, with their images; every pair once."""
        order = [self.pairs[index] for index in rng.permutation(len(self.pairs))]
        groups = [order[at : at + size] for at in range(0, len(order), size)]
        return [(sorted({id_ for pair in group for id_ in (pair.source, pair.target)}), group) for group in groups]


class Augmentation:
    """Random changes of a batch's images: each one's colours, and all of them mirrored or none.

    Whether they are mirrored is drawn first, so it does not depend on what else changes. If only one image were
    mirrored, its left eye would match the other's right eye.

    Args:
        augment: what may change; None for nothing.
        seed: of the draws.
    """

    def __init__(self, augment: Augment | None, seed: int):
        self._rng = np.random.default_rng(seed)
        self._augment = augment
        self.mirrored = augment is not None and augment.flip and bool(self._rng.random() < 0.5)

    def image(self, image: PillowImage.Image) -> PillowImage.Image:
        """One image of the batch in its colours, not mirrored yet."""
        if self._augment is None or not self._augment.photometric:
            return image
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = change(image).enhance(1 + self._augment.photometric * self._rng.uniform(-1, 1))
        return image

    def pair(self, pair: Pair, grids: Mapping[str, Grid]) -> Pair:
        """A pair of images with its points and boxes as they lie in the changed ones."""
        if not self.mirrored:
            return pair
        return replace(
            pair,
            source_keypoints=grids[pair.source].mirror(pair.points("source")).tolist(),
            target_keypoints=grids[pair.target].mirror(pair.points("target")).tolist(),
            source_bbox=_mirrored_box(pair.source_bbox, grids[pair.source]),
            target_bbox=_mirrored_box(pair.target_bbox, grids[pair.target]),
        )


def _mirrored_box(box: list[float] | None, grid: Grid) -> list[float] | None:
    """A box (x0, y0, x1, y1) in the mirrored image."""
    if box is None:
        return None
    right, left = grid.mirror(np.array(box, float).reshape(2, 2))[:, 0].tolist()
    return [left, box[1], right, box[3]]


def loss(maps: Maps, batch: Batch, tuning: Tuning, progress: float = 0.0) -> Tensor:
    """The mean loss over the keypoints of a batch.

    Args:
        maps: features of the batch's images.
        batch: its pairs, with keypoints as they lie in these images.
        tuning: `loss` and `end_point`.
        progress: of the training, 0 to 1, for numbers that change over it.
    """
    unit = {image_id: normalise(features) for image_id, (features, _) in maps.items()}
    device = unit[batch.ids[0]].device
    counts = np.array([len(pair.keypoint_ids) for pair in batch.pairs])
    pixels = {side: np.concatenate([pair.points(side) for pair in batch.pairs]) for side in ("source", "target")}
    numbers = {side: by_image([getattr(pair, side) for pair in batch.pairs], counts) for side in pixels}

    def truth(side: str, image_id: str) -> Tensor:
        """The annotated points of one image, in its cells."""
        grid = maps[image_id][1]
        cells = grid.pixels_to_cells(pixels[side][numbers[side][image_id]])
        return onto(device, cells.astype(np.float32))

    # Every image is sampled once, however many pairs it is the source of.
    sampled = [sample(unit[image_id], truth("source", image_id), "bilinear") for image_id in numbers["source"]]
    order = np.argsort(np.concatenate(list(numbers["source"].values())))
    descriptors = torch.cat(sampled)[onto(device, order)]
    generator = torch.Generator().manual_seed(batch.seed)
    upsample = maps[batch.ids[0]][1].upsample
    objective = losses.objective(tuning.loss, tuning.end_point, progress, upsample)
    values = []
    for image_id, keypoints in numbers["target"].items():
        target, source = unit[image_id], descriptors[onto(device, keypoints)]
        similarity, cells = heatmaps(source, target), truth("target", image_id)
        values.append(objective(maps=similarity, descriptors=source, target=target, cells=cells, generator=generator))
    return torch.cat(values).mean()


def learning_rate(step: int, steps: int, tuning: Tuning) -> float:
    """Factor on the learning rate at one of `steps` updates: a linear warm-up, then the schedule."""
    warmup = tuning.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, steps - warmup)
    match tuning.schedule:
        case "cosine":
            return float(0.5 * (1 + np.cos(np.pi * progress)))
        case "step":  # a tenth after two thirds, a hundredth after nine tenths
            return 0.1 ** ((progress >= 2 / 3) + (progress >= 0.9))
    return 1.0
