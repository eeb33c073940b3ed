"""How the package hangs together: which module may import which, one vocabulary, and a light command line."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from semcorr import cli
from semcorr.engine import graph

PACKAGE = Path(__file__).parents[2] / "semcorr"
# From the ground up: a floor imports those below it; CONTRIBUTING.md says what stands where.
FLOORS = [
    {"errors"},
    {"geometry", "pck", "tensors"},
    {"params", "artifacts", "measures"},
    {"plugins"},
    {"datasets", "readouts"},
    {"matching"},
    {"networks"},
    {"engine"},
    {"report"},
    {"stages", "api"},
    {"cli"},
]
FLOOR = {place: floor for floor, places in enumerate(FLOORS) for place in places}


def _modules() -> dict[str, Path]:
    """Every module of the package by its name below it, the package's own entry points left out."""
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items() if not name.startswith("__")}


def _imports(path: Path, *, anywhere: bool) -> set[str]:
    """Modules below the package that one imports, at its top or anywhere in it."""
    tree, found = ast.parse(path.read_text()), set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "semcorr":
            found |= {f"{node.module}.{alias.name}".removeprefix("semcorr.") for alias in node.names}
            found.add(node.module.removeprefix("semcorr").removeprefix("."))
    return found & MODULES.keys()


MODULES = _modules()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    """To a lower floor, or within a place; the two of one floor know nothing of each other."""
    place = name.partition(".")[0]
    for other in {module.partition(".")[0] for module in _imports(MODULES[name], anywhere=True)} - {place}:
        assert FLOOR[other] < FLOOR[place], f"imports {other}"
    if place == "stages":
        assert not {module for module in _imports(MODULES[name], anywhere=True) if module.startswith("stages.")}


def test_every_place_has_a_floor():
    assert {name.partition(".")[0] for name in MODULES} == FLOOR.keys()


def test_no_circle():
    """Not within a place either."""
    graphlib.TopologicalSorter(
        {name: _imports(path, anywhere=False) - {name} for name, path in MODULES.items()}
    ).prepare()


def test_one_verb_everywhere():
    """Stage, module, its function and the command line's verb have one name."""
    modules = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert modules == graph.STAGES.keys() == cli.STAGE_HELP.keys()
    for name in modules:
        tree = ast.parse((PACKAGE / "stages" / f"{name}.py").read_text())
        function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        assert [argument.arg for argument in function.args.args] == ["job", "params"]


def _loads(*command: str) -> set[str]:
    """Top-level packages that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        check=False,
    )
    return {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize("command", [["-m", "semcorr", "--help"], ["-m", "semcorr", "table"], ["-c", "import semcorr"]])
def test_light_commands_load_nothing_heavy(command):
    assert not _loads(*command) & {"torch", "timm", "pandas", "pyarrow", "h5py", "matplotlib"}


@pytest.mark.parametrize("stage", ["evaluate", "draw", "report"])
def test_scoring_needs_no_torch(stage):
    assert "torch" not in _loads("-c", f"import semcorr.stages.{stage}")


def test_benchmarks_find_what_they_measure():
    """They are run by hand: what they import is there."""
    folder = PACKAGE.parent / "benchmarks"
    names = [path.stem for path in folder.glob("*.py")]
    done = subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], cwd=folder, check=False)
    assert names
    assert not done.returncode
