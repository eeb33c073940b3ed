"""Where a dataset comes from: the first of its sources (drawn, local, or downloaded) that is available."""

import hashlib
import logging
from pathlib import Path

from semcorr.artifacts.files import alone, canonical_json, project_path, replacing, sha256
from semcorr.datasets import toy
from semcorr.datasets.archive import is_archive, unpack
from semcorr.datasets.download import download
from semcorr.datasets.formats import reader
from semcorr.errors import UserError
from semcorr.params import DatasetSpec, PathSource, Source, ToySource, UrlSource

FOLDER = Path("data/sources")  # what was drawn, downloaded or unpacked; not tracked by any engine

logger = logging.getLogger(__name__)


def provide(spec: DatasetSpec, name: str) -> Path:
    """The root of a dataset's format, from the first of its sources that is available.

    Raises:
        UserError: none is, and the message gives the reason for each; or one is damaged or not of the format.
    """
    reasons: list[str] = []
    for source in spec.sources:
        if reasons:
            logger.info("%s: %s; trying the next source", name, reasons[-1])
        try:
            folder = _folder(source, spec.format)
        except NotThere as error:
            reasons.append(str(error))
            continue
        return root_of(folder, spec.format)
    raise UserError(f"params.yaml: datasets.{name}.sources: none is available: {'; '.join(reasons)}")


def root_of(folder: Path, format_: str) -> Path:
    """The root of a format in a folder: the folder itself or one in it.

    Raises:
        UserError: there is none, or several.
    """
    find = reader(format_).find
    root = find(folder)
    if root is None:
        raise UserError(f"{folder}: nothing in it is in the format {format_!r}; see docs/datasets.md")
    if root != folder:
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and find(path) == path]
        if len(inside) > 1:
            names = ", ".join(path.name for path in inside)
            raise UserError(f"{folder}: holds several datasets: {names}. Give one of them as the path")
    return root


def open_path(path: Path) -> Path:
    """A folder of data: `path` itself, or the folder it unpacks to.

    Raises:
        UserError: it is neither a folder nor an archive, or is damaged.
    """
    if path.is_dir():
        return path
    if not is_archive(path):
        raise UserError(f"{path}: neither a folder nor a readable zip or tar archive")
    return _unpacked(path, sha256(path))


class NotThere(Exception):
    """A source is not available, so the next one is tried."""


def _folder(source: Source, format_: str) -> Path:
    match source:
        case ToySource():
            return _draw(source, format_)
        case PathSource():
            path = project_path(source.path)
            if not path.exists():
                raise NotThere(f"path {path} does not exist")
            return open_path(path)
        case UrlSource():
            return _fetch(source)


def _fetch(source: UrlSource) -> Path:
    # Without a checksum, the key is the addresses, so that two archives of the same name are not confused.
    key = source.sha256 or hashlib.sha256(canonical_json(source.urls).encode()).hexdigest()
    archive = FOLDER / f"{key[:12]}_{source.urls[0].rpartition('/')[2]}"
    if source.sha256 and (folder := _place(source.sha256)).is_dir():
        return folder
    with alone(archive):  # Snakemake fetches the splits side by side
        try:
            download(source.urls, source.sha256, archive)
        except UserError as error:
            raise NotThere(str(error)) from None
        try:
            return _unpacked(archive, source.sha256 or sha256(archive))
        except UserError:
            archive.unlink(missing_ok=True)  # without a known checksum, only unpacking shows damage
            raise


def _place(digest: str) -> Path:
    """The folder that an archive is unpacked to, named by its checksum."""
    return FOLDER / f"unpacked_{digest[:12]}"


def _unpacked(archive: Path, digest: str) -> Path:
    folder = _place(digest)
    with alone(folder):
        return folder if folder.is_dir() else unpack(archive, folder)


def _draw(source: ToySource, format_: str) -> Path:
    """Draw a toy benchmark once for all its splits."""
    pens = {"spair": toy.write_spair, "pfwillow": toy.write_pfwillow}
    if format_ not in pens:
        raise UserError(f"params.yaml: datasets: no toy is drawn in format {format_!r}; allowed: {', '.join(pens)}")
    digest = hashlib.sha256(canonical_json([format_, source.model_dump()]).encode())
    for module in sorted(Path(toy.__file__).parent.glob("*.py")):  # other code draws other pictures
        digest.update(module.read_bytes())
    folder = FOLDER / f"toy_{format_}_{digest.hexdigest()[:12]}"
    with alone(folder):
        if not folder.exists():
            with replacing(folder) as partial:
                pens[format_](partial, source.seed, source.images)
    return folder
