"""trunk: the input of the tuned blocks for every image of a dataset, so that fine-tuning never runs the rest."""

from semcorr.artifacts.provenance import provenance, verified
from semcorr.engine.basis import resume_key
from semcorr.engine.graph import Job
from semcorr.networks import runtime
from semcorr.networks.backbones import build_blockwise, load
from semcorr.networks.encode import Encoder, StoreTarget, encode, versions
from semcorr.params import Look, Params


def trunk(job: Job, params: Params) -> str:
    """Write the input of the last `trunk.blocks` blocks up to the feature layer, padding included."""
    spec = params.backbones[job.cell["backbone"]]
    inputs = verified(job.inputs, job.expects)
    device = runtime.device(params.runtime, params.threads)
    network = load(build_blockwise(spec), job.inputs["tensors"]).to(device)
    others = [] if job.cell["dataset"] == params.grid.train else params.trunk.sizes
    sizes = [spec.image_size, *(size for size in others if size != spec.image_size)]
    mirrored = [False, True] if params.trunk.mirrored else [False]
    looks = [Look(mirrored=one, size=size) for size in sizes for one in mirrored]
    stop = network.stop(spec) - params.trunk.blocks
    encoder = Encoder(
        network=network,
        spec=spec,
        forward=lambda images: network.trunk(images, stop),
        shape=network.activation_shape,
        stop=stop,
        features=False,
        looks=looks,
    )
    kept = StoreTarget(
        path=job.outputs["store"],
        record=provenance(job, inputs, versions=versions(), **runtime.facts(device)),
        resume_key=resume_key(job),
        title=job.title,
        precision=params.trunk.precision,
        key="trunk.precision",
    )
    return f"{' '.join(job.cell.values())}: {encode(encoder, job.inputs['images'], kept, params.runtime)}"
