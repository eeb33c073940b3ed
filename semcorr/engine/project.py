"""A project folder of one's own, and which semcorr it was made with.

The folder holds what both engines need; the code stays in the installed package. `.semcorr-version` records that
package's version and a hash of its code, to be committed with the results. Another one is no error, since results that
its code changes are made again; both engines say so when they start.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from string import Template

from semcorr import __version__, params
from semcorr.artifacts.files import canonical_json, remove, unwritable
from semcorr.engine import code, shipped
from semcorr.engine.memory import Memory
from semcorr.errors import UserError

VERSION = Path(".semcorr-version")
README = Path(__file__).parent / "templates/README.md"
RESULTS = ("stages", "readouts", "networks", "datasets")  # packages whose modules results depend on, with their imports


def create(folder: Path, preset: str) -> bool:
    """Make a project with a preset; in a git repository of its own unless it lies in one.

    Everything is written in another place first, so that nothing is left if it cannot be completed.

    Args:
        folder: a new one, or one that is empty but for `.git`.
        preset: one of semcorr's own by name, or the path of a .yaml file.

    Returns:
        Whether a git repository was made.

    Raises:
        UserError: the folder is not empty or cannot be written, there is no such preset, or git is missing.
    """
    path = _preset(preset)
    params.load(path)
    _require_empty(folder)
    own_repository = not _lies_in_git(folder.resolve())
    new = not folder.exists()
    mark = f"{os.getpid()}.partial"
    staging = folder.with_name(f".{folder.name}.{mark}") if new else folder / f".semcorr.{mark}"
    with unwritable(folder):
        try:
            _fill(staging, path, own_repository)
            if new:
                staging.rename(folder)
            for entry in [] if new else sorted(staging.iterdir()):
                entry.rename(folder / entry.name)
        finally:
            remove(staging)
    return own_repository


def _preset(name: str) -> Path:
    """The file of a preset of semcorr's own, or one given by its path."""
    path, own = Path(name), shipped.folder() / params.PRESETS
    if path.suffix not in (".yaml", ".yml"):
        path = own / f"{name}.yaml"
    if not path.is_file():
        allowed = ", ".join(sorted(preset.stem for preset in own.glob("*.yaml")))
        raise UserError(f"--preset {name}: no such preset; allowed: {allowed}, or the path of a .yaml file")
    return path


def _require_empty(folder: Path) -> None:
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir():
            raise UserError(f"{folder}: exists and is not a folder. Name a new or empty one")
        there = sorted(path.name for path in folder.iterdir() if path.name != ".git")
        if there:
            raise UserError(f"{folder}: not empty, it holds {there[0]}. Name a new or empty folder")


def _lies_in_git(folder: Path) -> bool:
    """Whether a folder lies in a git repository that does not ignore it; DVC works in no other.

    Raises:
        UserError: git is not installed.
    """
    above = next(path for path in (folder, *folder.parents) if path.is_dir())
    return _git("check-ignore", "--quiet", str(folder), at=above).returncode == 1


def _git(*words: str, at: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *words], cwd=at, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git: not found on the PATH. Install it; DVC needs a git repository") from None


def _fill(folder: Path, preset: Path, own_repository: bool) -> None:
    """Write all files of a project into a new folder."""
    folder.mkdir(parents=True)
    shipped.copy(shipped.folder(), folder)
    texts = {
        params.PARAMS_FILE.name: params.placed(preset.read_text(encoding="utf-8")),
        VERSION.name: f"{installed(Memory())}\n",
        "requirements.txt": f"semcorr[workflow]=={__version__}\n",
        "README.md": Template(README.read_text(encoding="utf-8")).substitute(version=__version__),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if own_repository:
        done = _git("init", "--quiet", at=folder)
        if done.returncode:
            raise UserError(f"git init: {done.stderr.strip()}. Nothing was made; run again")


def installed(memory: Memory) -> str:
    """The version of this semcorr, and a hash of the code that results depend on, comments and layout aside."""
    hashes = code.modules(memory, *_result_modules())
    return f"semcorr {__version__}, code {hashlib.sha256(canonical_json(hashes).encode()).hexdigest()[:16]}"


def _result_modules() -> Iterator[str]:
    for package in RESULTS:
        for path in (code.ROOT / "semcorr" / package).rglob("*.py"):
            yield ".".join(path.relative_to(code.ROOT).with_suffix("").parts).removesuffix(".__init__")


def require_dvcs_keys(values: params.Params) -> None:
    """Check that params.yaml has the keys that may be left out of it, but not of what fills in dvc.yaml.

    Raises:
        UserError: one is missing.
    """
    missing = [] if "layers" in values.grid.model_fields_set else ["grid.layers"]
    missing += [] if "fusions" in values.grid.model_fields_set else ["grid.fusions"]
    missing += [] if "hold_outs" in values.model_fields_set else ["hold_outs"]
    for name in values.grid.backbones:
        missing += [] if "views" in values.backbones[name].model_fields_set else [f"backbones.{name}.views"]
    if missing:
        keys, verb = ", ".join(missing), "is" if len(missing) == 1 else "are"
        raise UserError(f"{params.PARAMS_FILE}: {keys} {verb} missing, which dvc.yaml reads. Run: semcorr fix")
    if names := [one for one in values.grid.fusions if isinstance(one, str)]:
        what = f"grid.fusions: {names[0]!r} does not say what it joins, which dvc.yaml reads"
        raise UserError(f"{params.PARAMS_FILE}: {what}. Run: semcorr fix")


def another_version() -> str | None:
    """One line if the project was made with another semcorr than this one; None if not, or if it is not recorded."""
    if not VERSION.is_file():
        return None
    memory = Memory()
    recorded, now = " ".join(VERSION.read_text(encoding="utf-8", errors="replace").split()), installed(memory)
    memory.save()
    if recorded == now:
        return None
    return (
        f"{VERSION}: this project was made with {recorded}; here is {now}. What its code changes is made again. "
        f"To keep to the new one, write that into {VERSION} and requirements.txt"
    )
