"""fuse: the features of two backbones, joined, from their stores."""

import torch

from semcorr.artifacts.provenance import provenance, verified
from semcorr.artifacts.store import Entry, Store
from semcorr.engine.basis import resume_key
from semcorr.engine.graph import Job
from semcorr.networks import runtime
from semcorr.networks.encode import Arrays, StoreTarget, fill
from semcorr.networks.fusion import fused
from semcorr.networks.views import Seen, finest
from semcorr.params import Params


def fuse(job: Job, params: Params) -> str:
    """Write the feature store of one fusion on one dataset."""
    name = job.cell["fusion"]
    spec = params.fusions[name]
    kept = StoreTarget(
        path=job.outputs["store"],
        record=provenance(job, verified(job.inputs, job.expects), **runtime.facts(torch.device("cpu"))),
        resume_key=resume_key(job),
        title=job.title,
        precision=spec.precision,
        key=f"fusions.{name}.precision",
    )
    with Store(job.inputs["a"], job.expects["a"]) as a, Store(job.inputs["b"], job.expects["b"]) as b:

        def entry(image_id: str) -> Entry:
            grid = finest([store.grid(image_id) for store in (a, b)])
            channels = sum(store.entries()[image_id].shape[-1] for store in (a, b))
            return Entry(shape=(*grid.shape, channels), grid=grid)

        def arrays(done: set[str]) -> Arrays:
            for image_id in sorted(entries.keys() - done):
                joined, _ = fused(_seen(a, image_id), _seen(b, image_id), spec.weight)
                yield image_id, joined, lambda: f"set {kept.key} to float32"

        entries = {image_id: entry(image_id) for image_id in a.ids()}
        fill(kept, entries, arrays)
    return f"{' '.join(job.cell.values())}: {len(entries):,} images, {kept.path.stat().st_size / 1e6:,.0f} MB"


def _seen(store: Store, image_id: str) -> Seen:
    return Seen(torch.from_numpy(store.array(image_id)), store.grid(image_id), mirrored=False)
