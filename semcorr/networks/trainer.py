"""The loop that trains the last blocks of a network on its cached trunk, with keypoint supervision.

Every few epochs the validation pairs are matched, and the best tensors so far are kept. The state of a run is saved in
last.pt beside its outputs: a run that was killed resumes from there and ends with the same tensors.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from semcorr import pck
from semcorr.artifacts.files import replacing
from semcorr.artifacts.progress import logging_beside_bar, progress
from semcorr.artifacts.store import Store
from semcorr.datasets.archive import verify_members
from semcorr.datasets.base import Pair
from semcorr.datasets.sides import groups
from semcorr.errors import UserError, reason
from semcorr.matching import match_pairs
from semcorr.networks import runtime
from semcorr.networks.keeping import anchor, confident
from semcorr.networks.losses.sides import sides
from semcorr.networks.tail import Tail
from semcorr.networks.training import Augmentation, Batch, Batches, Maps, Tuned, learning_rate, loss
from semcorr.networks.upsampler import PREFIX
from semcorr.params import Keep, Look, Runtime, Trunk, Tuning
from semcorr.readouts.argmax import argmax
from semcorr.tensors import rounded

VALIDATION_SAMPLING = "bilinear"  # with argmax as the readout
VALIDATION_THRESHOLD = 0.10
READ_EVERY = 20  # steps after which a GPU is asked for their losses; asking after each would let it wait
SAVE_EVERY = 120  # seconds; also after every epoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, and on what.

    Attributes:
        backbone, name: names of the network and the tuning in params.yaml.
        tuning: how it is trained.
        pairs: of the training set.
        validation: pairs of the validation set.
        read: image id -> the training image, for augmentation.
        trunk: what is cached of the images.
        last: file for the run's state.
        key: identifies the run, which resumes only from the same key; "settings" and "basis" are dictionaries.
        options: how the machine is used.
    """

    backbone: str
    name: str
    tuning: Tuning
    pairs: list[Pair]
    validation: list[Pair]
    read: Callable[[str], PillowImage.Image]
    trunk: Trunk
    last: Path
    key: dict[str, Any]
    options: Runtime


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the optimizer, whose numbers the device may still be computing.

    Attributes:
        number, epoch: from 1.
        rate: the learning rate.
        loss: averaged over its batches.
        norm: of the gradient, before it is clipped.
    """

    number: int
    epoch: int
    rate: float
    loss: Tensor
    norm: Tensor


class Trainer:
    """One training run.

    Args:
        run: what is trained.
        tail: the network's upper part, with the tensors that training starts from.
        carried: tensors of another tuning that it starts from, which are part of the result.
    """

    def __init__(self, run: Run, tail: Tail, carried: dict[str, Tensor]):
        self.run, self.tail, self.carried = run, tail, carried
        self.title = f"{run.backbone} {run.name}"
        self.spec, self.tuning, self.device = tail.spec, run.tuning, tail.device
        self.group = runtime.group(self.device)
        torch.manual_seed(self.tuning.seed)
        tail.network.checkpointing = run.options.checkpointing
        self.tuned = Tuned(tail.network, self.spec, self.tuning)
        self.batches = Batches(run.pairs, self.tuning)
        self.validation = _evenly(run.validation, self.tuning.validation.pairs)
        self.steps = self.batches.count()
        parts, rate = self.tuned.groups(self.tuning), self.tuning.learning_rate
        self.optimizer = torch.optim.AdamW(parts, lr=rate, weight_decay=self.tuning.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.spec.compute == "float16")
        self.ema = self.tuned.values() if self.tuning.ema else None
        self.keep = self.tuning.keep or Keep(anchor=None, average=None, distil=None)
        self.start = self.tuned.values()
        self._require_twins()
        self._unread: list[Step] = []
        self.sure = 0  # matches that distillation found in this process
        self.warned = False  # about features that overflow the backbone's precision
        # With the tensors and the states of the optimizer and the scaler, all that a run needs to resume.
        self.state: dict[str, Any] = {
            "epoch": 1,
            "update": 0,
            "step": 0,
            "steps": [],  # step, loss, learning rate
            "curve": [],  # step, epoch, PCK
            "best": {},
            "best_score": -1.0,
            "best_epoch": 0,
            "worse": 0,
        }

    def train(self, trunk: Store, held_out: Store) -> None:
        """Train to the end, resuming where an earlier run of the same job stopped.

        Args:
            trunk: the input of the tuned blocks, for the training images.
            held_out: the same for the validation images.
        """
        state, last = self.state, self.tuning.epochs
        self._resume()
        logger.info("%s: %s", self.title, self.batches.describe())
        saved = time.monotonic()
        count = {"total": self.steps, "initial": state["step"], "disable": not self.group.first}
        with logging_beside_bar(), progress(**count, unit="step", desc=self.title) as bar:
            if not state["curve"]:
                self._validate(held_out, epoch=0)
            while state["epoch"] <= last and not self._patience_is_over():
                updates = self.batches.updates(state["epoch"])
                while state["update"] < len(updates):
                    now, following = [*updates, []][state["update"] :][:2]
                    self._update(trunk, now, following)
                    state["update"] += 1
                    bar.update()
                    reached = {"PCK": f"{100 * state['curve'][-1][2]:.1f} %"}
                    reached |= {"loss": f"{state['steps'][-1][1]:.3f}"} if state["steps"] else {}
                    bar.set_postfix(reached, refresh=False)
                    if time.monotonic() - saved > SAVE_EVERY:
                        self._save()
                        saved = time.monotonic()
                if state["epoch"] % self.tuning.validation.every == 0 or state["epoch"] == last:
                    self._validate(held_out, state["epoch"])
                state["epoch"], state["update"] = state["epoch"] + 1, 0
                self._save()
                saved = time.monotonic()
        self.group.close()
        if self.keep.distil is not None:
            logger.info("%s: distilled %d matches", self.title, self.sure)

    def _require_twins(self) -> None:
        """Refuse a term that tells sides apart where no keypoint has another side.

        Raises:
            UserError: the table of parts is another dataset's.
        """
        if (apart := self.tuning.sides) is None:
            return
        known: dict[str, set[str]] = {}
        for pair in self.run.pairs:
            known.setdefault(pair.category, set()).update(pair.keypoint_ids)
        every = ((groups(apart.table, category, sorted(names)), names) for category, names in known.items())
        if not any(len(group & names) > 1 for found, names in every for group in found):
            key, allowed = f"tunings.{self.run.name}.sides.table", "the table that numbers or names its keypoints"
            problem = f"by {apart.table}, no keypoint of the training set has a twin"
            raise UserError(f"params.yaml: {key}: {problem}; allowed: {allowed}, or null for sides")

    def curve(self) -> list[dict[str, Any]]:
        """Each validation's step, epoch and PCK, and the mean loss since the previous one."""
        rows, before = [], 0
        for step, epoch, score in self.state["curve"]:
            losses = [value for at, value, _ in self.state["steps"] if before < at <= step]
            mean = float(np.mean(losses)) if losses else None
            rows.append({"step": step, "epoch": epoch, "pck": score, "loss": mean})
            before = step
        return rows

    def _update(self, trunk: Store, batches: list[Batch], following: list[Batch]) -> None:
        """Take one step of the optimizer.

        Args:
            trunk: see `train`.
            batches: of this step.
            following: the next one's, which are read meanwhile; none at the end of an epoch.
        """
        state = self.state
        factor = learning_rate(state["step"], self.steps, self.tuning)
        progress = state["step"] / max(1, self.steps - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * factor * self.tuning.learning_rate
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        self.scaler.scale(total)  # which makes the scale, in a process that has none of these batches too
        own = self._own(batches)
        for batch, later in zip(own, [*own[1:], *self._own(following)[:1], None], strict=False):
            if later is not None and not self._live:
                self.tail.ahead(trunk, later.ids, Augmentation(self.tuning.augment, later.seed).mirrored)
            mean = self._loss(trunk, batch, progress) / len(batches)
            self.scaler.scale(mean).backward()
            total += mean.detach()
        total = self.group.sum([total])[0]
        tensors: list[Tensor] = list(self.tuned.tensors.values())
        self.group.sum_gradients(tensors)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(tensors, self.tuning.gradient_clip)
        state["step"] += 1
        rate = factor * self.tuning.learning_rate
        self._unread.append(Step(number=state["step"], epoch=state["epoch"], rate=rate, loss=total, norm=norm))
        if len(self._unread) >= (READ_EVERY if self.device.type == "cuda" else 1):
            self._read()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None and self.tuning.ema is not None:
            with torch.no_grad():
                for name, tensor in self.tuned.tensors.items():
                    self.ema[name].lerp_(tensor, 1 - self.tuning.ema)

    def _own(self, batches: list[Batch]) -> list[Batch]:
        """Those of an update's batches that this process computes."""
        return batches[self.group.rank :: self.group.size]

    def _read(self) -> None:
        """Wait for what the device computed since the last time, and record it.

        Raises:
            UserError: a loss or a gradient is not finite. Nothing has been saved since.
        """
        unread, self._unread = self._unread, []
        both = torch.stack([torch.stack([one.loss, one.norm]) for one in unread]).cpu().tolist() if unread else []
        for step, (value, norm) in zip(unread, both, strict=True):
            self._require_finite("loss", value, step)
            if not self.scaler.is_enabled():  # the scaler skips such a step and lowers its scale
                self._require_finite("gradient's norm", norm, step)
            self.state["steps"].append([step.number, value, step.rate])

    def _require_finite(self, what: str, value: float, step: Step) -> None:
        if not np.isfinite(value):
            raise UserError(
                f"{self.title}: the {what} is {value} at step {step.number} (epoch {step.epoch}). "
                f"Lower tunings.{self.run.name}.learning_rate. {self.run.last} keeps what was reached before"
            )

    def _loss(self, trunk: Store, batch: Batch, progress: float) -> Tensor:
        """The loss of a batch, and of what keeps the frozen network's knowledge."""
        forward, moved = self._prepared(trunk, batch)
        pull, distil = self.keep.anchor, self.keep.distil
        before: dict[str, Tensor] = {}
        blocks: dict[str, Tensor] = {}
        sure: list[Pair] = []
        # These come first: tensors that a backward pass needs must not change.
        if pull is not None:
            self._as(self.start, lambda: forward(before))
        if distil is not None and progress >= distil.after and self.ema is not None:
            sure = confident(self._as(self.ema, lambda: forward(None)), moved.pairs, distil, batch.seed)
            self.sure += sum(len(pair.keypoint_ids) for pair in sure)
        maps = forward(None if pull is None else blocks)
        value = loss(maps, moved, self.tuning, progress)
        apart = self.tuning.sides
        if apart is not None:
            alike = partial(groups, apart.table)
            if (term := sides(maps, moved.pairs, alike, apart.temperature)) is not None:
                value = value + apart.weight * term
        if pull is not None:
            value = value + pull * anchor(blocks, before)
        if distil is not None and sure:
            value = value + distil.weight * loss(maps, replace(moved, pairs=sure), self.tuning, progress)
        return value

    @property
    def _live(self) -> bool:
        """Whether the trunk runs, since it is not cached of the images as they are changed."""
        return self.tuning.augment is not None and self.tuning.augment.live(self.run.trunk)

    def _as(self, tensors: dict[str, Tensor], forward: Callable[[], Maps]) -> Maps:
        """What a forward pass gives with other trained tensors, without gradients."""
        current = self.tuned.values()
        self.tuned.put(tensors)
        with torch.no_grad():
            maps = forward()
        self.tuned.put(current)
        return maps

    def _prepared(self, trunk: Store, batch: Batch) -> tuple[Callable[[dict[str, Tensor] | None], Maps], Batch]:
        """The forward pass of a batch's images, and the batch with its keypoints as they lie in them.

        From the cached trunk, or from the images if theirs are not cached.
        """
        change = Augmentation(self.tuning.augment, batch.seed)
        grids = {image_id: trunk.grid(image_id) for image_id in batch.ids}
        moved = replace(batch, pairs=[change.pair(pair, grids) for pair in batch.pairs])
        live = self._live
        images = {image_id: change.image(self.run.read(image_id)) for image_id in batch.ids} if live else {}

        def forward(blocks: dict[str, Tensor] | None) -> Maps:
            with runtime.autocast(self.device, self.spec.compute):
                if live:
                    maps = self.tail.forward_live(images, self.spec.image_size, change.mirrored, blocks)
                else:
                    maps = self.tail.forward(trunk, batch.ids, change.mirrored, blocks)
            # The rest not under autocast, which would compute similarities in the lower precision.
            return {image_id: (features.float(), grid) for image_id, (features, grid) in maps.items()}

        return forward, moved

    def _validate(self, held_out: Store, epoch: int) -> None:
        """Score the validation pairs with the current tensors, or their average; keep them if they are the best."""
        self._read()
        state, current = self.state, None
        if (result := self._result()) is not None and epoch:
            current = self.tuned.values()
            self.tuned.put(result)
        score = self._score(held_out) if self.group.first else 0.0
        score = self.group.sum([torch.tensor(score, dtype=torch.float64, device=self.device)])[0].item()
        state["curve"].append([state["step"], epoch, score])
        if self.group.first:
            reached = f"PCK@{VALIDATION_THRESHOLD:.2f} {100 * score:.1f} % on the validation pairs"
            mean = self.curve()[-1]["loss"]
            when = f"epoch {epoch} of {self.tuning.epochs}: loss {mean:.3f}" if epoch else "before training"
            logger.info("%s: %s, %s", self.title, when, reached)
        if epoch and score > state["best_score"]:
            best = self.carried | self.tuned.export()
            state |= {"best": best, "best_score": score, "best_epoch": epoch, "worse": 0}
        elif epoch:
            state["worse"] += 1
        if current is not None:
            self.tuned.put(current)

    def _result(self) -> dict[str, Tensor] | None:
        """The trained tensors as they would be kept now, if those are others than the current ones."""
        share = self.keep.average
        if share is None:
            return self.ema
        reached = self.ema or self.tuned.tensors
        # A new head was nothing before training.
        own = [name for name in reached if not name.startswith(PREFIX) or name in self.carried]
        return {**reached, **{name: self.start[name].lerp(reached[name].detach(), share) for name in own}}

    def _score(self, held_out: Store) -> float:
        """PCK@0.10 per keypoint, relative to the object box or, without a box, to the keypoints' extent."""
        pairs = self.validation
        ids = sorted({image_id for pair in pairs for image_id in (pair.source, pair.target)})
        maps: Maps = {}
        with runtime.autocast(self.device, self.spec.compute):
            plain = [Look(mirrored=False, size=self.spec.image_size)]  # further views do not concern the training
            for image_id, features, grid in self.tail.features(held_out, ids, self.run.options.batch_size, plain):
                maps[image_id] = self._as_stored(features, image_id, held_out), grid
        queries = [(pair.source, pair.target, pair.points("source")) for pair in pairs]
        with torch.inference_mode():
            answers = match_pairs(queries, maps.__getitem__, VALIDATION_SAMPLING, argmax)
        correct = []
        for pair, (predicted, _) in zip(pairs, answers, strict=True):
            true = pair.points("target")
            reference = pck.references(true, bbox=pair.target_bbox, image_size=maps[pair.target][1].image_size)
            limits = np.full(len(true), reference["bbox"] if pair.target_bbox else reference["bbox_kp"])
            correct.append(pck.is_correct(pck.distances(predicted, true), limits, [VALIDATION_THRESHOLD]))
        return float(np.concatenate(correct).mean())

    def _as_stored(self, features: Tensor, image_id: str, held_out: Store) -> Tensor:
        """Round features like the stage adapt; if it would refuse them, warn and keep training."""
        key = f"backbones.{self.run.backbone}.precision"
        try:
            return rounded(features, self.spec.precision, image_id, lambda: self.tail.overflow(held_out, image_id, key))
        except UserError as error:
            if not self.warned:
                logger.warning("%s: adapt will refuse these tensors: %s", self.title, error)
            self.warned = True
            return features.float()

    def _patience_is_over(self) -> bool:
        return self.tuning.patience is not None and self.state["worse"] >= self.tuning.patience

    def _save(self) -> None:
        """Write last.pt atomically."""
        self._read()
        if not self.group.first:
            return
        content = {
            "key": self.run.key,
            "state": self.state,
            "tensors": self.tuned.values(),
            "ema": self.ema or {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        # Through a Python file, whose errors identify a full disk; torch's own do not.
        with replacing(self.run.last) as partial, partial.open("wb") as file:
            torch.save(content, file)

    def _resume(self) -> None:
        """Resume from last.pt, finished or not; warn if it is damaged or of another run."""
        if not self.run.last.exists():
            return
        try:
            verify_members(self.run.last)
            # Not on a GPU, where the optimizer would wait for each of its counts of steps.
            saved = torch.load(self.run.last, map_location="cpu", weights_only=True)
            old, new = saved["key"], self.run.key
        except Exception as error:  # a damaged file can raise anything
            logger.warning("%s: not resumed, since it cannot be read (%s)", self.run.last, reason(error))
            return
        if old != new:
            names = old["settings"] | new["settings"]
            changed = [name for name in names if old["settings"].get(name) != new["settings"].get(name)]
            changed = changed or [role for role in new["basis"] if old.get("basis", {}).get(role) != new["basis"][role]]
            logger.warning(
                "%s: not resumed, since it belongs to a different run (%s)", self.run.last, ", ".join(changed)
            )
            return
        self.tuned.put(saved["tensors"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.ema = {name: tensor.to(self.device) for name, tensor in saved["ema"].items()} or None
        self.state |= saved["state"]
        logger.info("%s: resumed at step %d", self.title, self.state["step"])


def _evenly(pairs: list[Pair], count: int | None) -> list[Pair]:
    """Evenly spaced pairs among those with keypoints, `count` of them or all."""
    pairs = [pair for pair in pairs if pair.keypoint_ids]
    if not pairs:
        raise UserError("the validation set has no pair with a keypoint; see grid.validate, its `limit`, and hold_outs")
    count = min(count or len(pairs), len(pairs))
    return [pairs[index] for index in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
