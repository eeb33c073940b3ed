"""finetune: train the last blocks of a backbone on cached trunk activations, with keypoint supervision.

An epoch visits every training image once. A batch takes several images of one category, runs the tail once on each,
and trains on every annotated ordered pair among them, so one forward pass serves many pairs. After each epoch the
validation pairs are matched; the best epoch's tensors are kept.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from semcorr import pck, runtime
from semcorr.backbones import save
from semcorr.datasets.base import Pair, read_pairs
from semcorr.errors import UserError
from semcorr.files import replacing
from semcorr.geometry import Grid
from semcorr.graph import Job
from semcorr.losses import gaussian_cross_entropy
from semcorr.matching import heatmaps, match_pairs, normalise, sample
from semcorr.params import Argmax, Params, Tuning
from semcorr.provenance import expect, provenance
from semcorr.store import Store
from semcorr.tail import Tail

VALIDATION_RULE = Argmax(readout="argmax", sampling="bilinear")
VALIDATION_THRESHOLD = 0.10


def finetune(job: Job, params: Params) -> str:
    """Train one backbone under one tuning and write its best tensors and its learning curve."""
    spec = params.backbones[job.cell["backbone"]]
    tuning = params.tunings[job.cell["tuning"]]
    inputs = {role: expect(job.inputs[role], key) for role, key in job.expects.items()}
    device = runtime.device(params)
    torch.manual_seed(tuning.seed)
    tail = Tail(spec, params.trunk.blocks, device, job.inputs["tensors"])
    tuned = _unfreeze(tail, tuning)
    pairs = read_pairs(job.inputs["train_pairs"])
    validation = read_pairs(job.inputs["validate_pairs"])
    batches = _Batches(pairs, tuning)
    optimizer = torch.optim.AdamW(tuned.values(), lr=tuning.learning_rate, weight_decay=tuning.weight_decay)
    steps = batches.per_epoch * tuning.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, tuning.warmup))
    curve, best, kept = [], -1.0, {}
    with (
        Store(job.inputs["train"], job.expects["train"]) as trunk,
        Store(job.inputs["validate"], job.expects["validate"]) as held_out,
        tqdm(total=steps, unit="step", desc=" ".join([job.stage, *job.cell.values()]), disable=None) as bar,
    ):
        curve.append({"epoch": 0, "loss": None, "pck": _validate(tail, held_out, validation, params)})
        for epoch in range(1, tuning.epochs + 1):
            losses = []
            for ids, chosen in batches.epoch(epoch):
                loss = _loss(tail.forward(trunk, ids), chosen, tuning)
                if not torch.isfinite(loss):
                    raise UserError(
                        f"{' '.join(job.cell.values())}: the loss is {loss.item()} in epoch {epoch}. "
                        f"Lower tunings.{job.cell['tuning']}.learning_rate"
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(tuned.values(), tuning.gradient_clip)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
            score = _validate(tail, held_out, validation, params)
            curve.append({"epoch": epoch, "loss": float(np.mean(losses)), "pck": score})
            bar.set_postfix(loss=f"{np.mean(losses):.3f}", pck=f"{score:.3f}")
            if score > best:
                best, kept = score, {name: tensor.detach().cpu().clone() for name, tensor in tuned.items()}
    with replacing(job.outputs["curve"]) as partial:
        lines = [f"{row['epoch']},{'' if row['loss'] is None else row['loss']},{row['pck']}" for row in curve]
        partial.write_text("\n".join(["epoch,loss,pck", *lines]) + "\n")
    record = provenance(job, inputs, epoch=max(curve[1:], key=lambda row: row["pck"])["epoch"])
    save(job.outputs["tensors"], kept, record)
    return (
        f"{' '.join(job.cell.values())}: PCK@{VALIDATION_THRESHOLD:.2f} on {params.grid.validate_} "
        f"{curve[0]['pck']:.3f} before, {best:.3f} at epoch {record['epoch']} of {tuning.epochs}"
    )


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: linear up over the first `warmup` of all steps, then half a cosine down to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + np.cos(np.pi * (step - rise) / max(1.0, steps - rise)))


def _unfreeze(tail: Tail, tuning: Tuning) -> dict[str, Tensor]:
    """Make the tuned modules trainable; their parameters by the network's names."""
    for module in tail.network.tuned_modules(tuning.blocks, tail.spec):
        module.requires_grad_(True)
    return {name: tensor for name, tensor in tail.network.net.named_parameters() if tensor.requires_grad}


class _Batches:
    """Groups of images of one category, and the annotated pairs among them."""

    def __init__(self, pairs: list[Pair], tuning: Tuning):
        self.size = tuning.images_per_batch
        self.seed = tuning.seed
        self.pairs: dict[str, dict[tuple[str, str], Pair]] = defaultdict(dict)
        self.images: dict[str, list[str]] = {}
        for pair in pairs:
            self.pairs[pair.category][pair.source, pair.target] = pair
        for category, members in self.pairs.items():
            self.images[category] = sorted({image_id for key in members for image_id in key})
        self.per_epoch = sum(-(-len(ids) // self.size) for ids in self.images.values())

    def epoch(self, number: int) -> Iterator[tuple[list[str], list[Pair]]]:
        """The epoch's batches in its own random order; a group without an annotated pair is left out."""
        rng = np.random.default_rng([self.seed, number])
        groups = []
        for category, ids in self.images.items():
            order = [ids[index] for index in rng.permutation(len(ids))]
            for part in np.array_split(np.arange(len(order)), -(-len(order) // self.size)):
                group = [order[index] for index in part]
                among = [self.pairs[category].get((a, b)) for a in group for b in group if a != b]
                groups.append((group, [pair for pair in among if pair is not None]))
        for index in rng.permutation(len(groups)):
            if groups[index][1]:
                yield groups[index]


def _loss(maps: dict[str, tuple[Tensor, Grid]], pairs: list[Pair], tuning: Tuning) -> Tensor:
    """Mean over keypoints of the tuning's loss, over pairs among images whose features are in `maps`."""
    unit = {image_id: normalise(features) for image_id, (features, _) in maps.items()}
    by_target: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_target[pair.target].append(pair)
    losses = []
    for target, members in by_target.items():
        descriptors = []
        for pair in members:
            cells = maps[pair.source][1].pixels_to_cells(np.array(pair.source_keypoints, float))
            descriptors.append(sample(unit[pair.source], unit[pair.source].new_tensor(cells), "bilinear"))
        points = np.concatenate([np.array(pair.target_keypoints, float) for pair in members])
        cells = unit[target].new_tensor(maps[target][1].pixels_to_cells(points))
        similarity = heatmaps(torch.cat(descriptors), unit[target])
        losses.append(gaussian_cross_entropy(similarity, cells, tuning.loss.temperature, tuning.loss.sigma_cells))
    return torch.cat(losses).mean()


def _validate(tail: Tail, trunk: Store, pairs: list[Pair], params: Params) -> float:
    """PCK@0.10 per keypoint of the validation pairs, against the box where there is one, else the keypoints' range."""
    ids = sorted({image_id for pair in pairs for image_id in (pair.source, pair.target)})
    found = {
        image_id: (features, grid) for image_id, features, grid in tail.features(trunk, ids, params.runtime.batch_size)
    }
    correct = []
    for pair, (predicted, _) in zip(pairs, match_pairs(pairs, found.__getitem__, VALIDATION_RULE), strict=True):
        true = np.array(pair.target_keypoints, float)
        reference = pck.references(true, bbox=pair.target_bbox, image_size=found[pair.target][1].image_size)
        length = reference["bbox"] if pair.target_bbox else reference["bbox_kp"]
        limits = np.full(len(true), length)
        correct.append(pck.is_correct(pck.distances(predicted, true), limits, [VALIDATION_THRESHOLD]))
    return float(np.concatenate(correct).mean())
