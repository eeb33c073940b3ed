"""What results depend on besides params.yaml and each other: code, and local files.

`validate` writes it as small text files below `data/basis`, on which DVC's stages depend, so that a stage runs again
if and only if something that it uses has changed:

    code/<stage>            the modules that a stage imports
    rules/<rule>            those of its readout
    tunings/<tuning>        those of its objective
    backbones/<backbone>    those of its family of networks
    datasets/<dataset>      those of its format, and the files of a `path`
    weights/<backbone>      the `file` that its tensors are read from

Each line is a hash and the module or folder that it is of. Names are relative, so the same data elsewhere hash the
same. If the files are gone from this machine, their last hashes are kept, since results made from them remain valid.
"""

import hashlib
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import canonical_json, project_path, remove, sha256, write_text
from semcorr.engine import code
from semcorr.engine.graph import BASIS, Graph, Job
from semcorr.engine.memory import Memory, files
from semcorr.errors import UserError
from semcorr.params import FileWeights, Params, PathSource, PFWillowSpec, SPairSpec


def texts(graph: Graph, memory: Memory) -> dict[Path, str]:
    """The current text of every file of the basis."""
    current: dict[Path, str] = {}
    for job in graph.jobs():
        current |= {path: text(job, path, graph.params, memory) for path in job.basis if path not in current}
    return current


def text(job: Job, path: Path, params: Params, memory: Memory) -> str:
    """The current text of one file of a job's basis."""
    lines = [f"{digest}  {module}" for module, digest in code.modules(memory, *job.basis[path]).items()]
    paths, heading = sources(path, params)
    if all(source.exists() for source in paths):
        hashes = [line for source in paths for line in memory.ask("files", source, _listing)]
    else:
        hashes = _recorded(path, heading)
    return "\n".join([*lines, *([heading, *hashes] if hashes else [])]) + "\n"


def sources(path: Path, params: Params) -> tuple[list[Path], str]:
    """The local paths that a file of the basis covers, existing or not, and the heading of their hashes."""
    kind, name = path.relative_to(BASIS).parts
    if kind == "weights":
        weights = params.backbones[name].weights
        paths = [project_path(weights.path)] if isinstance(weights, FileWeights) else []
        given: Any = weights.model_dump()
    elif kind == "datasets":
        spec = params.datasets[name]
        folders = [project_path(source.path) for source in spec.sources if isinstance(source, PathSource)]
        roots = [_root(folder, spec.format) for folder in folders if folder.exists()]
        match spec:
            case PFWillowSpec(pairs=str(further)) | SPairSpec(annotations=str(further)):
                beside = [project_path(further)]
            case _:
                beside = []
        paths, given = (roots[:1] or folders[:1]) + beside, [source.model_dump() for source in spec.sources]
    else:
        return [], ""
    return paths, f"read of this machine, for {hashlib.sha256(canonical_json(given).encode()).hexdigest()[:16]}:"


def _root(path: Path, format_: str) -> Path:
    """The part of a path that is read: a folder may hold much else besides the dataset."""
    if not path.is_dir():
        return path
    from semcorr.datasets.formats import reader

    return reader(format_).find(path) or path


def _listing(path: Path) -> list[str]:
    """One line per folder below a folder, with a hash of its files' names and bytes; for a file, a single line."""
    if path.is_file():
        return [f"{sha256(path)}  {path.name}"]
    folders: dict[str, list[str]] = {}
    for name, file in files(path):
        folders.setdefault(str(Path(name).parent), []).append(f"{sha256(file)}  {name}")
    return [f"{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}  {name}/" for name, lines in folders.items()]


def _recorded(path: Path, heading: str) -> list[str]:
    """The hashes in a file of the basis, if they are of the sources that params.yaml has now."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return lines[lines.index(heading) + 1 :] if heading in lines else []


def require_sources(path: Path, params: Params) -> None:
    """Refuse to remake from another source what was made from files that no longer exist.

    Args:
        path: the file of the basis with their hashes.
        params: of the experiment.

    Raises:
        UserError: a file is gone.
    """
    paths, heading = sources(path, params)
    gone = [str(source) for source in paths if not source.exists()]
    if gone and _recorded(path, heading):
        raise UserError(
            f"{', '.join(gone)}: gone since this was made. Bring it back; or remove {path} and run again to use the "
            "next source in params.yaml"
        )


def write(current: dict[Path, str]) -> None:
    """Write the files of the basis that have changed, and remove all others in its folder."""
    for path in BASIS.rglob("*") if BASIS.exists() else ():
        if path.is_file() and path not in current:
            remove(path)
    for path, content in current.items():
        if not path.is_file() or path.read_bytes() != content.encode():
            write_text(path, content)


def resume_key(job: Job) -> dict[str, str]:
    """What a job's unfinished work depends on: its code, and the content of each input, by role.

    Fingerprints alone do not suffice: editing an image does not change the parameters.
    """
    from semcorr.artifacts.store import content

    memory = Memory()
    hashes = {str(path): canonical_json(code.modules(memory, *names)) for path, names in job.basis.items()}
    return hashes | {role: content(job.inputs[role]) for role in job.expects}
