"""weights: a backbone's tensors as one safetensors file, and what identifies them beside it.

Entries of params.yaml with equal tensors share one file on the disk.
"""

from pathlib import Path

from semcorr.artifacts.provenance import provenance, write_result
from semcorr.engine.graph import Job
from semcorr.networks.backbones import save_shared
from semcorr.networks.backbones.weights import get
from semcorr.params import Params, RandomBaseline

FOLDER = Path("data/sources")


def weights(job: Job, params: Params) -> str:
    """Write the tensors of one backbone under one baseline, with their origin."""
    spec = params.backbones[job.cell["backbone"]]
    baseline = params.baselines[job.cell["weights"]]
    network, origin = get(spec, baseline if isinstance(baseline, RandomBaseline) else spec.weights, FOLDER)
    tensors = network.net.state_dict()
    key = save_shared(job.outputs["tensors"], tensors)
    write_result(job.outputs["record"], {"provenance": provenance(job, origin=origin, sha256=key)})
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"{job.cell['backbone']} {job.cell['weights']}: {len(tensors)} tensors, {count:,} values, from {origin}"
