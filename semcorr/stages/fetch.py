"""fetch: a dataset's images and its two indexes, verified, from its first available source."""

from semcorr.artifacts.files import replacing
from semcorr.artifacts.provenance import provenance
from semcorr.datasets.base import IMAGE_SCHEMA, PAIR_SCHEMA, NoSuchCategory, write_index
from semcorr.datasets.formats import reader
from semcorr.datasets.sources import provide
from semcorr.datasets.verify import require_tables, summary, verified_images
from semcorr.engine.basis import require_sources
from semcorr.engine.graph import BASIS, Job
from semcorr.errors import UserError
from semcorr.params import Params


def fetch(job: Job, params: Params) -> str:
    """Verify a dataset and write its images and indexes."""
    name = job.cell["dataset"]
    spec = params.datasets[name]
    require_sources(BASIS / "datasets" / name, params)
    root = provide(spec, name)
    format_ = reader(spec.format)
    format_.verify(root, spec)
    try:
        benchmark = format_.load(root, spec).first(spec.limit)
    except NoSuchCategory as error:
        raise UserError(f"params.yaml: datasets.{name}.categories: {error}") from None
    require_tables(benchmark)
    with replacing(job.outputs["folder"]) as folder:
        images = verified_images(benchmark, folder)
    record = provenance(job, left_out=benchmark.left_out)
    write_index(job.outputs["pairs"], benchmark.pairs, PAIR_SCHEMA, record)
    write_index(job.outputs["images"], images, IMAGE_SCHEMA, record)
    return f"{name}: {summary(benchmark)}"
