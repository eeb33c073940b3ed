"""What an experiment reads of this machine, so that both engines see it change: data at a `path`, weights in a `file`.

Snakemake is given those files themselves. A DVC stage depends on fixed paths, while params.yaml decides whether a
dataset or a network reads anything here at all. So each has an entry in `watched/`: a link to what it reads, which DVC
follows, or a small file that says that it reads nothing.
"""

import os
from pathlib import Path

from semcorr.errors import UserError
from semcorr.files import project_path, remove, replacing, unwritable, write_text
from semcorr.params import Backbone, Dataset, FileWeights, Params, PathSource

WATCHED = Path("watched")
NOTHING = "Nothing of this machine is read.\n"
# Looking at the 70,958 files of SPair-71k's pairs would cost each call 4 s; .dvcignore says the same to DVC.
UNWATCHED = "PairAnnotation"


def link(params: Params) -> None:
    """Bring the entries of all datasets and of the grid's networks up to date; links are hidden from git.

    Raises:
        UserError: what an entry links to is gone.
    """
    networks = {name: params.backbones[name] for name in params.grid.backbones}
    for kind, readers in {"datasets": params.datasets, "weights": networks}.items():
        folder = WATCHED / kind
        with unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, reader in readers.items():
                _enter(folder / name, _paths(reader))
            links = sorted(path.name for path in folder.iterdir() if path.is_symlink())
            _write(folder / ".gitignore", "".join(f"/{name}\n" for name in [".gitignore", *links] if links))


def local(reader: Dataset | Backbone) -> Path | None:
    """The folder or file of this machine that a dataset or network reads, if there is one."""
    return next((path for path in _paths(reader) if path.exists()), None)


def files(name: str, reader: Dataset | Backbone) -> list[str]:
    """The files of this machine that a dataset or network reads, in the order of their names, for Snakemake.

    By way of their entry in `watched/`, where it is up to date: Snakemake takes {braces} in a path for wildcards. What
    has braces in its own name is left out; it cannot be told to Snakemake at all.
    """
    path = local(reader)
    if path is None:
        return []
    entry = WATCHED / ("weights" if isinstance(reader, Backbone) else "datasets") / name
    path = entry if entry.exists() and entry.samefile(path) else path
    found = [path] if path.is_file() else []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if name != UNWATCHED]
        found += [Path(folder, name) for name in names]
    return sorted(str(file) for file in found if "{" not in str(file))


def _paths(reader: Dataset | Backbone) -> list[Path]:
    if isinstance(reader, Backbone):
        return [project_path(reader.weights.path)] if isinstance(reader.weights, FileWeights) else []
    paths = [project_path(source.path) for source in reader.sources if isinstance(source, PathSource)]
    return [_root(path, reader.format) for path in paths]


def _root(path: Path, format_: str) -> Path:
    """What is read of a path: it may be a folder that holds much else beside the data's own."""
    if not path.is_dir():
        return path
    from semcorr.datasets.formats import FORMATS

    return FORMATS[format_].find(path) or path


def _enter(entry: Path, paths: list[Path]) -> None:
    links = {path: _target(path, entry.parent) for path in paths}
    to = next((links[path] for path in paths if path.exists()), None)
    now = str(entry.readlink()) if entry.is_symlink() else None
    if to is None and now and any(f"{now}/".startswith(f"{link}/") for link in links.values()):
        raise UserError(
            f"{entry}: links to {now}, which is gone. Bring it back, or remove this link, and the next of the sources "
            "in params.yaml is taken"
        )
    if to is None:
        if now is not None:
            entry.unlink()
        _write(entry, NOTHING)
    elif to != now:
        with replacing(entry) as partial:
            partial.symlink_to(to)


def _target(path: Path, folder: Path) -> str:
    """What a link in `folder` to a path holds: data inside the project are found from any copy of it."""
    path = path.resolve()
    return os.path.relpath(path, folder.resolve()) if path.is_relative_to(Path.cwd().resolve()) else str(path)


def _write(path: Path, text: str) -> None:
    """Write a file whose bytes are others; none if there is nothing to write."""
    if not text:
        remove(path)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
