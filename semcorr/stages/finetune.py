"""finetune: train the last blocks of a backbone on cached trunk activations, with keypoint supervision."""

import logging
import os
import subprocess
import sys

from torch import Tensor

from semcorr.artifacts.files import project_path, sha256, write_text
from semcorr.artifacts.provenance import provenance, verified
from semcorr.artifacts.store import Store
from semcorr.datasets.base import Image, read_image, read_images, read_pairs
from semcorr.datasets.hold_outs import seen
from semcorr.engine.basis import resume_key
from semcorr.engine.graph import Job
from semcorr.errors import UserError
from semcorr.networks import runtime
from semcorr.networks.backbones import overlay, save
from semcorr.networks.tail import Tail
from semcorr.networks.trainer import VALIDATION_THRESHOLD, Run, Trainer
from semcorr.params import Params, Start

logger = logging.getLogger(__name__)


def finetune(job: Job, params: Params) -> str:
    """Train one backbone under one tuning and write its best tensors and its learning curves."""
    if params.runtime.processes > 1 and not runtime.launched():
        return _launch(job, params)
    backbone, name = job.cell["backbone"], job.cell["tuning"]
    tuning = params.tunings[name]
    inputs = verified(job.inputs, job.expects)
    device = runtime.device(params.runtime, params.threads)
    tail = Tail(params.backbones[backbone], params.trunk.blocks, device, job.inputs["tensors"])
    images = {image.id: image for image in read_images(job.inputs["train_images"])}
    pairs, validation = (read_pairs(job.inputs[f"{which}_pairs"]) for which in ("train", "validate"))
    _require_other_images(images, read_images(job.inputs["validate_images"]))
    folder = job.inputs["train_images"].parent / "images"
    if params.hold_outs is not None:
        known = {pair.category for pair in (*pairs, *validation)}
        for category in [name for name in params.hold_outs.categories or () if name not in known]:
            logger.warning("hold_outs.categories: %s is in neither the training nor the validation set", category)
    run = Run(
        backbone=backbone,
        name=name,
        tuning=tuning,
        pairs=seen(pairs, params.hold_outs),
        validation=seen(validation, params.hold_outs),
        read=lambda image_id: read_image(folder, images[image_id]),
        trunk=params.trunk,
        last=job.outputs["tensors"].with_name("last.pt"),
        key={
            "fingerprint": job.fingerprint,
            "basis": resume_key(job),
            "settings": {key: str(value) for key, value in job.settings.items()},
        },
        options=params.runtime,
    )
    base = inputs["tensors"]["sha256"]
    trainer = Trainer(run, tail, {} if tuning.start is None else _begin_from(tuning.start, name, tail, base))
    with (
        Store(job.inputs["train"], job.expects["train"]) as trunk,
        Store(job.inputs["validate"], job.expects["validate"]) as held_out,
    ):
        trainer.train(trunk, held_out)
    state, title = trainer.state, trainer.title
    if not trainer.group.first:
        return f"{title}: process {trainer.group.rank} is done"
    rows = [f"{step},{value},{rate}" for step, value, rate in state["steps"]]
    write_text(job.outputs["steps"], "\n".join(["step,loss,learning_rate", *rows]) + "\n")
    rows = [f"{step},{epoch},{score}" for step, epoch, score in state["curve"]]
    write_text(job.outputs["curve"], "\n".join(["step,epoch,pck", *rows]) + "\n")
    record = provenance(job, inputs, epoch=state["best_epoch"], curve=trainer.curve(), **runtime.facts(device))
    save(job.outputs["tensors"], state["best"], record)
    return (
        f"{title}: PCK@{VALIDATION_THRESHOLD:.2f} on {job.inputs['validate'].stem} {100 * state['curve'][0][2]:.1f} % "
        f"before, {100 * state['best_score']:.1f} % at its best, after epoch {state['best_epoch']} of {tuning.epochs}"
    )


def _require_other_images(train: dict[str, Image], validate: list[Image]) -> None:
    """Refuse to validate on images that are trained on; say if a picture only has another name there.

    Raises:
        UserError: an image is in both.
    """
    pictures = {image.sha256 for image in train.values()}
    shown = [image.id for image in validate if image.sha256 in pictures]
    if same := [id_ for id_ in shown if id_ in train]:
        raise UserError(f"params.yaml: grid.validate: {len(same):,} of its images are trained on, such as {same[0]}")
    if shown:
        logger.warning("%d pictures are trained on and validated on under two names, such as %s", len(shown), shown[0])


def _begin_from(start: Start, name: str, tail: Tail, base: str) -> dict[str, Tensor]:
    """Load another tuning's tensors over the frozen ones, whose digest is `base`, and return them."""
    path, key = project_path(start.path), f"tunings.{name}.start"
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint ({key}). Train that tuning first")
    if (actual := sha256(path)) != start.sha256:
        raise UserError(f"{path}: its sha256 is {actual}, {key} expects {start.sha256}")
    tensors = overlay(tail.network, path, base)
    for tensor in tensors:
        if tensor.startswith("blocks.") and int(tensor.split(".")[1]) < tail.first:
            raise UserError(f"{path}: {tensor} lies below the cached trunk. Raise trunk.blocks to that tuning's blocks")
    return tensors


def _launch(job: Job, params: Params) -> str:
    """Run this job in several processes through torch's launcher."""
    name, count = job.cell["tuning"], params.runtime.processes
    if (accumulate := params.tunings[name].accumulate) % count:
        problem = f"{count} processes cannot share tunings.{name}.accumulate ({accumulate}) evenly"
        raise UserError(f"params.yaml: runtime.processes: {problem}; allowed: a divisor of it")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", *job.command.split()[2:]]
    environment = os.environ | runtime.visible(params.runtime, count)
    if subprocess.run(command, check=False, stdout=sys.stderr, env=environment).returncode:
        raise UserError(f"finetune: one of the {count} processes failed; see its error above")
    return f"{' '.join(job.cell.values())}: trained in {count} processes"
