"""weights: a backbone's tensors as one safetensors file, every one accounted for."""

from pathlib import Path

import torch

from semcorr.backbones import build, check, save
from semcorr.backbones.weights import package_tensors, random_tensors
from semcorr.graph import Job
from semcorr.params import Params, RandomBaseline, RandomWeights
from semcorr.provenance import provenance

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
    save(job.outputs["tensors"], tensors, provenance(job, origin=origin))
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"{job.cell['backbone']} {job.cell['weights']}: {len(tensors)} tensors, {count:,} values, from {origin}"
