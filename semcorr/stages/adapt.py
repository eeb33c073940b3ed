"""adapt: the features of a tuned backbone, from the cached trunk."""

from functools import partial

from semcorr.artifacts.provenance import provenance, verified
from semcorr.artifacts.store import Entry, Store
from semcorr.engine.basis import resume_key
from semcorr.engine.graph import Job
from semcorr.geometry import resized_size
from semcorr.networks import runtime, views
from semcorr.networks.encode import Arrays, StoreTarget, fill
from semcorr.networks.tail import Tail
from semcorr.params import Params


def adapt(job: Job, params: Params) -> str:
    """Write the feature store of one backbone under one tuning."""
    spec = params.backbones[job.cell["backbone"]]
    inputs = verified(job.inputs, job.expects)
    device = runtime.device(params.runtime, params.threads)
    tail = Tail(spec, params.trunk.blocks, device, job.inputs["frozen"], job.inputs["tuned"])
    kept = StoreTarget(
        path=job.outputs["store"],
        record=provenance(job, inputs, **runtime.facts(device)),
        resume_key=resume_key(job),
        title=job.title,
        precision=spec.precision,
        key=f"backbones.{job.cell['backbone']}.precision",
    )
    with Store(job.inputs["trunk"], job.expects["trunk"]) as trunk:
        channels = len(spec.views) * tail.network.channels(spec)
        entries = {}
        for image_id in views.plain(trunk.ids()):
            whole = trunk.grid(image_id).image_size
            grid = tail.network.grid(whole, resized_size(whole, max(spec.sizes)))
            entries[image_id] = Entry(shape=(*grid.shape, channels), grid=grid)

        def arrays(done: set[str]) -> Arrays:
            ids = [image_id for image_id in entries if image_id not in done]
            for image_id, features, _ in tail.features(trunk, ids, params.runtime.batch_size, spec.looks):
                yield image_id, features, partial(tail.overflow, trunk, image_id, kept.key)

        with runtime.autocast(device, spec.compute):
            fill(kept, entries, arrays)
    return f"{' '.join(job.cell.values())}: {len(entries):,} images"
