"""The loop that trains the last blocks of a network on its cached trunk, with keypoint supervision.

After each epoch, or every few, the validation pairs are matched, and the best tensors so far are kept. What a run has
reached lies in last.pt beside its outputs: a run that was killed goes on from there and ends with the same tensors.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from tqdm import tqdm

from semcorr import pck
from semcorr.artifacts.files import replacing
from semcorr.artifacts.store import Store
from semcorr.datasets.archive import verify_members
from semcorr.datasets.base import Pair
from semcorr.errors import UserError, reason
from semcorr.geometry import Grid
from semcorr.matching import match_pairs
from semcorr.networks import runtime
from semcorr.networks.tail import Tail
from semcorr.networks.training import Augmentation, Batch, Batches, Maps, Tuned, learning_rate, loss
from semcorr.params import Runtime, Tuning
from semcorr.readouts.argmax import argmax
from semcorr.tensors import rounded

VALIDATION_SAMPLING = "bilinear"  # and argmax
VALIDATION_THRESHOLD = 0.10
SAVE_EVERY = 120  # seconds, and after every epoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, and on what.

    Attributes:
        backbone, name: names in params.yaml, of the network and of the tuning.
        tuning: how it is trained.
        pairs: of the training set.
        validation: pairs of the validation set.
        read: image id -> the training image, for augmentation.
        last: file that keeps what the run has reached.
        key: what a run must share with another to go on with it; "settings" and "basis", each by name.
        options: how the machine is used.
    """

    backbone: str
    name: str
    tuning: Tuning
    pairs: list[Pair]
    validation: list[Pair]
    read: Callable[[str], PillowImage.Image]
    last: Path
    key: dict[str, Any]
    options: Runtime


class Trainer:
    """One training run.

    Args:
        run: what is trained.
        tail: the network's upper part, with the tensors that training starts from.
        carried: tensors of another tuning that it starts from, which belong to the result.
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
        rate, decay = self.tuning.learning_rate, self.tuning.weight_decay
        self.optimizer = torch.optim.AdamW(self.tuned.tensors.values(), lr=rate, weight_decay=decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.spec.compute == "float16")
        self.ema = self.tuned.values() if self.tuning.ema else None
        self.warned = False  # of features that the backbone's precision does not hold
        # What a run has reached; with the tensors and the optimizer's state, all that it needs to go on.
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
        """Train to the end, from wherever an earlier run of the same job was stopped.

        Args:
            trunk: what enters the tuned blocks, of the training images.
            held_out: the same of the validation images.
        """
        state, last = self.state, self.tuning.epochs
        self._resume()
        logger.info("%s: %s", self.title, self.batches.describe())
        saved = time.monotonic()
        with tqdm(total=self.steps, initial=state["step"], unit="step", desc=self.title, disable=self._quiet) as bar:
            if not state["curve"]:
                self._validate(held_out, epoch=0)
            while state["epoch"] <= last and not self._patience_is_over():
                updates = self.batches.updates(state["epoch"])
                while state["update"] < len(updates):
                    value = self._update(trunk, updates[state["update"]])
                    state["update"] += 1
                    bar.update()
                    bar.set_postfix(loss=f"{value:.3f}", pck=f"{state['curve'][-1][2]:.3f}")
                    if time.monotonic() - saved > SAVE_EVERY:
                        self._save()
                        saved = time.monotonic()
                if state["epoch"] % self.tuning.validation.every == 0 or state["epoch"] == last:
                    self._validate(held_out, state["epoch"])
                state["epoch"], state["update"] = state["epoch"] + 1, 0
                self._save()
                saved = time.monotonic()
        self.group.close()

    def curve(self) -> list[dict[str, Any]]:
        """Each validation's step, epoch and PCK, and the mean loss of the steps since the one before."""
        rows, before = [], 0
        for step, epoch, score in self.state["curve"]:
            losses = [loss for at, loss, _ in self.state["steps"] if before < at <= step]
            mean = float(np.mean(losses)) if losses else None
            rows.append({"step": step, "epoch": epoch, "pck": score, "loss": mean})
            before = step
        return rows

    @property
    def _quiet(self) -> bool | None:
        """Whether there is no bar: None leaves it to whether somebody looks."""
        return None if self.group.first else True

    def _update(self, trunk: Store, batches: list[Batch]) -> float:
        """One step of the optimizer; the loss, averaged over its batches."""
        state = self.state
        factor = learning_rate(state["step"], self.steps, self.tuning)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.tuning.learning_rate
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for batch in batches[self.group.rank :: self.group.size]:
            with runtime.autocast(self.device, self.spec.compute):
                maps, move = self._maps(trunk, batch)
            # Outside, since inside the similarity's product would be computed in the lower precision again.
            maps = {image_id: (features.float(), grid) for image_id, (features, grid) in maps.items()}
            mean = loss(maps, batch, self.tuning, move) / len(batches)
            self.scaler.scale(mean).backward()
            total += mean.detach()
        value = self.group.sum([total])[0].item()
        self._require_finite("loss", value)
        tensors: list[Tensor] = list(self.tuned.tensors.values())
        self.group.sum_gradients(tensors)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(tensors, self.tuning.gradient_clip)
        if not self.scaler.is_enabled():  # the scaler leaves such a step out, and goes on with a smaller scale
            self._require_finite("gradient's norm", norm.item())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None and self.tuning.ema is not None:
            with torch.no_grad():
                for name, tensor in self.tuned.tensors.items():
                    self.ema[name].lerp_(tensor, 1 - self.tuning.ema)
        state["step"] += 1
        state["steps"].append([state["step"], value, factor * self.tuning.learning_rate])
        return value

    def _require_finite(self, what: str, value: float) -> None:
        if not np.isfinite(value):
            raise UserError(
                f"{self.title}: the {what} is {value} at step {self.state['step'] + 1} (epoch {self.state['epoch']}). "
                f"Lower tunings.{self.run.name}.learning_rate. {self.run.last} keeps what was reached before"
            )

    def _maps(self, trunk: Store, batch: Batch) -> tuple[Maps, Any]:
        """The features of a batch's images, from the cached trunk, or live where they are augmented."""
        if self.tuning.augment is None:
            return self.tail.forward(trunk, batch.ids), lambda points, _: points
        change = Augmentation(self.tuning.augment, batch.seed)
        images = {image_id: change.image(self.run.read(image_id)) for image_id in batch.ids}
        return self.tail.forward_live(images, self.spec.image_size), change.keypoints

    def _validate(self, held_out: Store, epoch: int) -> None:
        """Score the validation pairs with the tensors as they are, or their average; keep them if they are the best."""
        state = self.state
        current = None
        if self.ema is not None and epoch:
            current = self.tuned.values()
            self.tuned.put(self.ema)
        score = self._score(held_out) if self.group.first else 0.0
        score = self.group.sum([torch.tensor(score, dtype=torch.float64, device=self.device)])[0].item()
        state["curve"].append([state["step"], epoch, score])
        if epoch:
            if score > state["best_score"]:
                state |= {
                    "best": self.carried | self.tuned.export(),
                    "best_score": score,
                    "best_epoch": epoch,
                    "worse": 0,
                }
            else:
                state["worse"] += 1
        if current is not None:
            self.tuned.put(current)

    def _score(self, held_out: Store) -> float:
        """PCK@0.10 per keypoint, against the box where there is one, else the keypoints' range."""
        pairs = self.validation
        ids = sorted({image_id for pair in pairs for image_id in (pair.source, pair.target)})
        maps: dict[str, tuple[Tensor, Grid]] = {}
        with runtime.autocast(self.device, self.spec.compute):
            for image_id, features, grid in self.tail.features(held_out, ids, self.run.options.batch_size):
                maps[image_id] = self._as_stored(features, image_id, held_out), grid
        correct = []
        with torch.inference_mode():
            answers = match_pairs(
                [(pair.source, pair.target, pair.points("source")) for pair in pairs],
                maps.__getitem__,
                VALIDATION_SAMPLING,
                argmax,
            )
        for pair, (predicted, _) in zip(pairs, answers, strict=True):
            true = np.array(pair.target_keypoints, float)
            reference = pck.references(true, bbox=pair.target_bbox, image_size=maps[pair.target][1].image_size)
            length = reference["bbox"] if pair.target_bbox else reference["bbox_kp"]
            limits = np.full(len(true), length)
            correct.append(pck.is_correct(pck.distances(predicted, true), limits, [VALIDATION_THRESHOLD]))
        return float(np.concatenate(correct).mean())

    def _as_stored(self, features: Tensor, image_id: str, held_out: Store) -> Tensor:
        """Features rounded as `adapt` will; where it will refuse to, as they are, so that training is not lost."""
        key = f"backbones.{self.run.backbone}.precision"
        try:
            return rounded(features, self.spec.precision, image_id, lambda: self.tail.overflow(held_out, image_id, key))
        except UserError as error:
            if not self.warned:
                logger.warning("%s: adapt will refuse these tensors as they are now: %s", self.title, error)
            self.warned = True
            return features.float()

    def _patience_is_over(self) -> bool:
        return self.tuning.patience is not None and self.state["worse"] >= self.tuning.patience

    def _save(self) -> None:
        """Write last.pt, whole or not at all."""
        if not self.group.first:
            return
        with (
            replacing(self.run.last) as partial,
            partial.open("wb") as file,
        ):  # a full disk is told apart by Python alone
            torch.save(
                {
                    "key": self.run.key,
                    "state": self.state,
                    "tensors": self.tuned.values(),
                    "ema": self.ema or {},
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                },
                file,
            )

    def _resume(self) -> None:
        """Go on with last.pt, if it is of this very job, be it at its end; say so if it is of another."""
        if not self.run.last.exists():
            return
        try:
            verify_members(self.run.last)
            saved = torch.load(self.run.last, map_location=self.device, weights_only=True)
            key, ours = saved["key"], self.run.key
        except Exception as error:  # whatever a damaged file makes of itself
            logger.warning("%s: not resumed, since it cannot be read (%s)", self.run.last, reason(error))
            return
        if key != ours:
            both = {**key["settings"], **ours["settings"]}
            other = [name for name in both if key["settings"].get(name) != ours["settings"].get(name)]
            other = other or [
                role for role, content in ours["basis"].items() if key.get("basis", {}).get(role) != content
            ]
            logger.warning("%s: not resumed, since it is of another run (%s)", self.run.last, ", ".join(other))
            return
        self.tuned.put(saved["tensors"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.ema = saved["ema"] or None
        self.state |= saved["state"]
        logger.info("%s: resumed at step %d", self.title, self.state["step"])


def _evenly(pairs: list[Pair], count: int | None) -> list[Pair]:
    """As many evenly spaced ones of the pairs that have keypoints; all of them where there is no count."""
    pairs = [pair for pair in pairs if pair.keypoint_ids]
    if not pairs:
        raise UserError("the validation set has no pair with a keypoint; see grid.validate and its `limit`")
    count = min(count or len(pairs), len(pairs))
    return [pairs[index] for index in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
