"""extract: the features of every image of a dataset, each image encoded once."""

from semcorr.artifacts.provenance import provenance, verified
from semcorr.engine.basis import resume_key
from semcorr.engine.graph import Job
from semcorr.networks import runtime
from semcorr.networks.backbones import build, load
from semcorr.networks.encode import Encoder, StoreTarget, encode, versions
from semcorr.params import Params


def extract(job: Job, params: Params) -> str:
    """Write the feature store of one dataset, computed by one backbone with one set of weights."""
    name, spec = job.cell["backbone"], params.backbones[job.cell["backbone"]]
    inputs = verified(job.inputs, job.expects)
    device = runtime.device(params.runtime, params.threads)
    network = load(build(spec), job.inputs["tensors"]).to(device)
    encoder = Encoder(
        network=network,
        spec=spec,
        forward=lambda images: network.features(images, spec).permute(0, 2, 3, 1),
        shape=lambda cells: (*cells, len(spec.views) * network.channels(spec)),
        stop=network.stop(spec),
        features=True,
        looks=spec.looks,
    )
    kept = StoreTarget(
        path=job.outputs["store"],
        record=provenance(job, inputs, versions=versions(), **runtime.facts(device)),
        resume_key=resume_key(job),
        title=job.title,
        precision=spec.precision,
        key=f"backbones.{name}.precision",
    )
    return f"{' '.join(job.cell.values())}: {encode(encoder, job.inputs['images'], kept, params.runtime)}"
