"""adapt: the features of a tuned backbone, from the cached trunk."""

from semcorr import runtime, store
from semcorr.graph import Job
from semcorr.params import Params
from semcorr.provenance import expect, provenance
from semcorr.tail import Tail


def adapt(job: Job, params: Params) -> str:
    """Write the feature store of one backbone under one tuning."""
    spec = params.backbones[job.cell["backbone"]]
    record = provenance(job, {role: expect(job.inputs[role], key) for role, key in job.expects.items()})
    device = runtime.device(params)
    tail = Tail(spec, params.trunk.blocks, device, job.inputs["frozen"], job.inputs["tuned"])
    with (
        store.Store(job.inputs["trunk"], job.expects["trunk"]) as trunk,
        store.create(job.outputs["store"], record) as writer,
    ):
        ids = trunk.ids()
        for image_id, features, grid in tail.features(trunk, ids, params.runtime.batch_size):
            writer.add(image_id, features.cpu().numpy().astype(spec.precision), grid)
    return f"{' '.join(job.cell.values())}: {len(ids):,} images"
