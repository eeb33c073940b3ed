"""fetch: a dataset's images and its two indexes, from the first of its sources that can be had."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from semcorr.datasets import pfwillow, spair, toy
from semcorr.datasets.base import IMAGE_SCHEMA, PAIR_SCHEMA, Benchmark, write_index
from semcorr.errors import UserError
from semcorr.files import canonical_json, replacing, sha256
from semcorr.graph import Job
from semcorr.params import Dataset, Params, Source, ToySource
from semcorr.provenance import provenance

FOLDER = Path("data/sources")  # what was drawn or downloaded, beside the datasets; no engine tracks it


def fetch(job: Job, params: Params) -> str:
    """Verify a dataset and put its images and indexes where the other stages look for them."""
    name = job.cell["dataset"]
    spec = params.datasets[name]
    benchmark = read(spec, source_folder(spec, name)).first(spec.limit)
    images = []
    with replacing(job.outputs["folder"]) as folder:
        for image in benchmark.images:
            path = folder / image.file
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(benchmark.root / image.file, path)
            images.append(replace(image, sha256=sha256(path)))
    record = provenance(job)
    write_index(job.outputs["pairs"], benchmark.pairs, PAIR_SCHEMA, record)
    write_index(job.outputs["images"], images, IMAGE_SCHEMA, record)
    keypoints = sum(len(pair.keypoint_ids) for pair in benchmark.pairs)
    return f"{name}: {len(images):,} images, {len(benchmark.pairs):,} pairs, {keypoints:,} keypoints"


def read(spec: Dataset, root: Path) -> Benchmark:
    """Read a benchmark's folder in the format that params.yaml names."""
    if spec.format == "spair":
        return spair.read(root, spec.split, spec.layout)
    return pfwillow.read(root)


def source_folder(spec: Dataset, name: str) -> Path:
    """The folder of the first source that can be had.

    Raises:
        UserError: none can; the message says why for each.
    """
    reasons = []
    for source in spec.sources:
        try:
            return _provide(source, spec.format)
        except FileNotFoundError as error:
            reasons.append(str(error))
    raise UserError(f"params.yaml: datasets.{name}.sources: none can be had: {'; '.join(reasons)}")


def _provide(source: Source, format_: str) -> Path:
    if isinstance(source, ToySource):
        return _draw(source, format_)
    folder = Path(source.path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"path {folder} is no folder")
    return folder


def _draw(source: ToySource, format_: str) -> Path:
    """Draw a toy benchmark once for all its splits."""
    digest = hashlib.sha256(canonical_json([format_, source.model_dump()]).encode())
    digest.update(Path(toy.__file__).read_bytes())  # another version of the pen draws other pictures
    folder = FOLDER / f"toy_{format_}_{digest.hexdigest()[:12]}"
    write = {"spair": toy.write_spair, "pfwillow": toy.write_pfwillow}[format_]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f".{folder.name}.lock"):  # Snakemake fetches the splits side by side
        if not folder.exists():
            with replacing(folder) as partial:
                write(partial, source.seed, source.images)
    return folder
