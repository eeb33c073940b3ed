"""What results rest on beside params.yaml and each other: code, and files of this machine.

`validate` writes it as small text files below `data/basis`, which DVC's stages depend on, so that a stage runs again
when, and only when, something has changed there that it uses:

    code/<stage>            the modules that a stage imports
    rules/<rule>            those of its readout
    tunings/<tuning>        those of its objective
    backbones/<backbone>    those of its family of networks
    datasets/<dataset>      those of its format, and what is read of a `path`
    weights/<backbone>      the `file` that its tensors are read from

A line is a hash, and the module or folder that has it. Names are relative: the same data elsewhere are the same. Where
what was read is gone from this machine, what was said of it stays, since its results are as right as before.
"""

import hashlib
from pathlib import Path

from semcorr.artifacts.files import canonical_json, project_path, remove, sha256, write_text
from semcorr.engine import code
from semcorr.engine.graph import BASIS, Graph, Job
from semcorr.engine.memory import Memory, files
from semcorr.errors import UserError
from semcorr.params import FileWeights, Params, PathSource


def texts(graph: Graph, memory: Memory) -> dict[Path, str]:
    """Every file of the basis, and what it is to say now."""
    found: dict[Path, str] = {}
    for job in graph.jobs():
        found |= {path: text(job, path, graph.params, memory) for path in job.basis if path not in found}
    return found


def text(job: Job, path: Path, params: Params, memory: Memory) -> str:
    """What one file of a job's basis is to say now."""
    lines = [f"{digest}  {module}" for module, digest in code.modules(memory, *job.basis[path]).items()]
    wanted, heading = sources(path, params)
    if all(one.exists() for one in wanted):
        read = [line for one in wanted for line in memory.ask("files", one, _listing)]
    else:
        read = _said(path, heading)
    return "\n".join([*lines, *([heading, *read] if read else [])]) + "\n"


def sources(path: Path, params: Params) -> tuple[list[Path], str]:
    """What a file of the basis tells of on this machine, be it there or not, and the line over what is read of it."""
    kind, name = path.relative_to(BASIS).parts
    if kind == "weights":
        weights = params.backbones[name].weights
        found, given = [project_path(weights.path)] if isinstance(weights, FileWeights) else [], weights.model_dump()
    elif kind == "datasets":
        spec = params.datasets[name]
        paths = [project_path(source.path) for source in spec.sources if isinstance(source, PathSource)]
        there = [_root(one, spec.format) for one in paths if one.exists()]
        listed = [project_path(spec.pairs)] if getattr(spec, "pairs", None) else []
        found, given = (there[:1] or paths[:1]) + listed, [source.model_dump() for source in spec.sources]
    else:
        return [], ""
    return found, f"read of this machine, for {hashlib.sha256(canonical_json(given).encode()).hexdigest()[:16]}:"


def _root(path: Path, format_: str) -> Path:
    """What is read of a path: it may be a folder that holds much else beside the data's own."""
    if not path.is_dir():
        return path
    from semcorr.datasets.formats import reader

    return reader(format_).find(path) or path


def _listing(path: Path) -> list[str]:
    """A line for each folder in a folder: a hash over the names and bytes of its files; of a file, one line."""
    if path.is_file():
        return [f"{sha256(path)}  {path.name}"]
    folders: dict[str, list[str]] = {}
    for name, file in files(path):
        folders.setdefault(str(Path(name).parent), []).append(f"{sha256(file)}  {name}")
    return [f"{hashlib.sha256(chr(10).join(of).encode()).hexdigest()}  {name}/" for name, of in folders.items()]


def _said(path: Path, heading: str) -> list[str]:
    """What a file of the basis says was read, for the sources that params.yaml has now."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return lines[lines.index(heading) + 1 :] if heading in lines else []


def require_sources(path: Path, params: Params) -> None:
    """Refuse to make anew, out of something else, what was made from files that are gone now.

    Args:
        path: the file of the basis that says what was read.
        params: of the experiment.

    Raises:
        UserError: what it names is gone.
    """
    wanted, heading = sources(path, params)
    gone = [str(one) for one in wanted if not one.exists()]
    if gone and _said(path, heading):
        raise UserError(
            f"{', '.join(gone)}: gone since this was made. Bring it back; or remove {path} and run again, and the next "
            "of the sources in params.yaml is taken"
        )


def write(found: dict[Path, str]) -> None:
    """Write the basis, those files that say something else; remove what is none of it."""
    for path in BASIS.rglob("*") if BASIS.exists() else ():
        if path.is_file() and path not in found:
            remove(path)
    for path, said in found.items():
        if not path.is_file() or path.read_bytes() != said.encode():
            write_text(path, said)


def unfinished(job: Job) -> dict[str, str]:
    """What a job's unfinished work rests on: its code, and the content of each input, by role.

    Fingerprints do not tell contents apart: an image that was edited leaves the parameters as they are.
    """
    from semcorr.artifacts.store import content

    memory = Memory()
    said = {str(path): canonical_json(code.modules(memory, *names)) for path, names in job.basis.items()}
    return said | {role: content(job.inputs[role]) for role in job.expects}
