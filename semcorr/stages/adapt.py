"""adapt: the features of a tuned backbone, from the cached trunk."""

from functools import partial

from semcorr.artifacts import store
from semcorr.artifacts.provenance import expect, provenance
from semcorr.engine.graph import Job
from semcorr.finite import rounded
from semcorr.networks import runtime
from semcorr.networks.tail import Tail
from semcorr.params import Params


def adapt(job: Job, params: Params) -> str:
    """Write the feature store of one backbone under one tuning."""
    spec = params.backbones[job.cell["backbone"]]
    record = provenance(job, {role: expect(job.inputs[role], key) for role, key in job.expects.items()})
    device = runtime.device(params)
    tail = Tail(spec, params.trunk.blocks, device, job.inputs["frozen"], job.inputs["tuned"])
    with store.Store(job.inputs["trunk"], job.expects["trunk"]) as trunk:
        grids = {image_id: trunk.grid(image_id) for image_id in trunk.ids()}
        channels = tail.network.channels(spec)
        entries = {name: store.Entry(shape=(*grid.shape, channels), grid=grid) for name, grid in grids.items()}
        with (
            store.create(job.outputs["store"], record, entries, spec.precision, store.basis(job)) as writer,
            runtime.autocast(device, spec.compute),
        ):
            ids = [image_id for image_id in grids if image_id not in writer.done]
            for image_id, features, _ in tail.features(trunk, ids, params.runtime.batch_size):
                why = partial(tail.overflow, trunk, image_id, f"backbones.{job.cell['backbone']}.precision")
                kept = rounded(features, spec.precision, f"adapt {' '.join(job.cell.values())}: {image_id}", why)
                writer.add(image_id, kept.cpu().numpy())
    return f"{' '.join(job.cell.values())}: {len(grids):,} images"
