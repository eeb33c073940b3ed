"""How the package hangs together: which module may import which, one vocabulary, and a light command line."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from semcorr import cli
from semcorr.engine import graph

PACKAGE = Path(__file__).parents[1] / "semcorr"
LAYERS = [
    {"errors", "shipped"},
    {"geometry", "files", "finite"},
    {"provenance", "params", "download", "memory"},
    {"graph", "code"},
    {"datasets", "backbones", "pck", "runtime", "readouts", "engines"},
    {"basis", "store", "matching", "pictures", "architectures", "published"},
    {"losses", "current"},
    {"tail", "training", "page", "keeper"},
    {"stages", "api", "compare"},
    {"images", "plan"},
    {"serve"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _modules():
    return [
        path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__") or path.parent != PACKAGE
    ]


def _unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "semcorr":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("semcorr."):
            names = [node.module.split(".")[1]]
        else:
            continue
        for name in set(names) & LEVEL.keys():
            same = name == _unit(path)
            assert same or LEVEL[name] < LEVEL[_unit(path)] or LEVEL[name] == LEVEL[_unit(path)] == 1, f"imports {name}"


def test_every_module_has_a_layer():
    assert {_unit(path) for path in _modules()} == LEVEL.keys()


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
