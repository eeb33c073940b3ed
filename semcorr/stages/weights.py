"""weights: a backbone's tensors as one safetensors file, every one accounted for."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from semcorr import provenance
from semcorr.backbones import build, check
from semcorr.backbones.weights import package_tensors, random_tensors
from semcorr.files import replacing
from semcorr.graph import Job
from semcorr.params import Params, RandomBaseline, RandomWeights

FOLDER = Path("data/sources")


def weights(job: Job, params: Params) -> str:
    """Get the tensors of one backbone under one baseline and write them with where they came from."""
    spec = params.backbones[job.cell["backbone"]]
    baseline = params.baselines[job.cell["weights"]]
    source = baseline if isinstance(baseline, RandomBaseline) else spec.weights
    torch.manual_seed(getattr(source, "seed", 0))
    network = build(spec)
    if isinstance(source, RandomBaseline | RandomWeights):
        tensors, origin = random_tensors(network), f"random, seed {source.seed}"
    else:
        tensors = package_tensors(source, FOLDER)
        origin = f"{source.package} {source.version}, {source.member}, sha256 {source.sha256}"
    check(tensors, network, origin)
    write_tensors(job.outputs["tensors"], tensors, provenance.provenance(job, origin=origin))
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"{job.cell['backbone']} {job.cell['weights']}: {len(tensors)} tensors, {count:,} values, from {origin}"


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], record: dict) -> None:
    """Write tensors as safetensors, with provenance, by rename."""
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata={provenance.KEY: provenance.dumps(record)})
