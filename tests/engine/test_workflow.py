"""The two engines: one graph, the same bytes, and only what a change touches runs again."""

import contextlib
import copy
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Clone, run_forked, setting

from semcorr import params
from semcorr.artifacts.files import write_json
from semcorr.engine import graph, markers

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "workflow/presets").glob("*.yaml"))


def _dvc_graph() -> dict:
    """Stage name -> command, inputs, outputs and parameter values, as DVC sees them in the working directory."""
    from dvc.repo import Repo

    found = {}
    for stage in Repo(".").index.stages:
        settings = {}
        for dependency in stage.deps:
            if type(dependency).__name__ == "ParamsDependency":
                settings |= dependency.read_params()
        found[stage.addressing] = {
            "command": stage.cmd,
            "inputs": {d.def_path for d in stage.deps if type(d).__name__ != "ParamsDependency"},
            "outputs": {output.def_path for output in stage.outs},
            "settings": settings,
            "gpu": stage.meta["gpu"] if stage.meta else 0,
        }
    return found


def _snakemake_graph(values: params.Params) -> dict:
    """The same of Snakemake."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings

    found, ours = {}, graph.Graph(values)
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
        workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Snakefile"))
        with contextlib.redirect_stdout(io.StringIO()):
            workflow.dag(DAGSettings(forceall=True)).printd3dag()
        for job in workflow._workflow.dag.jobs:
            if job.rule.norun:
                continue
            cell = [job.wildcards_dict[axis] for axis in graph.STAGES[job.rule.name].axes]
            found[ours.job(job.rule.name, *cell).name] = {
                "command": job.shellcmd.split(" 2> ")[0],
                "inputs": set(map(str, job.input)),
                "outputs": set(map(str, job.output)),
                "gpu": job.resources.get("gpu", 0),
            }
    return found


def _our_graph(values: params.Params) -> dict:
    """The same of the stages themselves."""
    found = {}
    for job in graph.Graph(values).jobs():
        found[job.name] = {
            "command": job.command,
            "reads": set(map(str, job.reads)),
            "inputs": {*map(str, job.inputs.values()), str(markers.marker(job.stage, *job.cell.values()))},
            "outputs": set(map(str, job.outputs.values())),
            "settings": job.settings,
        }
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_one_graph_in_both_engines(clone, preset, monkeypatch):
    """Stages, commands, inputs, outputs and parameter values of DVC, Snakemake and the package are the same."""
    monkeypatch.chdir(clone(preset).root)
    values = params.load()
    ours, dvc, snakemake = _our_graph(values), _dvc_graph(), _snakemake_graph(values)
    assert ours.pop("validate")["outputs"] == dvc.pop("validate")["outputs"] == {str(graph.BASIS)}  # Snakemake, itself
    assert ours.keys() == dvc.keys() == snakemake.keys()
    for name, job in ours.items():
        assert dvc[name]["command"] == snakemake[name]["command"] == job["command"]
        assert dvc[name]["outputs"] == snakemake[name]["outputs"] == job["outputs"]
        assert dvc[name]["inputs"] == job["reads"]  # the basis among them, and folders that hold what is gathered
        assert snakemake[name]["inputs"] == job["inputs"]
        assert dvc[name]["settings"] == job["settings"], name
        assert dvc[name]["gpu"] == snakemake[name]["gpu"]


def test_every_parameter_is_read_by_a_stage():
    """Each leaf outside `runtime` and the names of the grid counts for at least one job's fingerprint."""
    values = params.read_yaml(ROOT / "workflow/presets/demo.yaml")
    before = {
        (job.stage, *job.cell.values()): job.fingerprint
        for job in graph.Graph(params.load(ROOT / "workflow/presets/demo.yaml")).jobs()
    }
    changes = {
        ("datasets", "toy_spair_test", "limit"): 3,
        ("backbones", "dinov2_s14", "weights", "version"): "9",
        ("backbones", "dinov2_s14", "image_size"): 238,
        ("backbones", "dinov2_s14", "layer"): 7,
        ("backbones", "dinov2_s14", "norm"): True,
        ("backbones", "dinov2_s14", "precision"): "float32",
        ("baselines", "random", "seed"): 5,
        ("trunk", "precision"): "float32",
        ("tunings", "last2", "epochs"): 3,
        ("rules", "softargmax", "temperature"): 0.5,
        ("evaluate", "bootstrap"): 200,
        ("threads",): 1,
    }
    for path, value in changes.items():
        changed = copy.deepcopy(values)
        place = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        after = {
            (job.stage, *job.cell.values()): job.fingerprint
            for job in graph.Graph(params.validate(changed, "x")).jobs()
        }
        assert before != after, path
        assert before["report",] != after["report",]
    unchanged = copy.deepcopy(values)
    unchanged["runtime"] = {"device": "cpu", "workers": 0, "batch_size": 1, "compile": True, "checkpointing": True}
    unchanged["runtime"]["processes"] = 2
    assert before == {
        (job.stage, *job.cell.values()): job.fingerprint for job in graph.Graph(params.validate(unchanged, "x")).jobs()
    }


def _cells(
    stages: tuple[str, ...], weights: tuple[str, ...], rules: tuple[str, ...] = ("argmax", "softargmax")
) -> set[str]:
    """Names of stages of the small experiment."""
    return {f"{stage}@dinov2_tiny-{one}-toy_spair_test-{rule}" for stage in stages for one in weights for rule in rules}


BOTH = ("frozen", "last1")
DRAWS = {f"draw@dinov2_tiny-{weights}-toy_spair_test" for weights in BOTH}
LAYERS = "layers@dinov2_tiny-toy_spair_test"
CHANGES = {
    "the window": (
        setting("rules", "softargmax", "window", 5),
        _cells(("match", "evaluate"), BOTH, ("softargmax",)) | DRAWS | {"report", "headline"},
    ),
    "the batch size": (setting("runtime", "batch_size", 3), set()),
}
SOFT = _cells(("match", "evaluate"), BOTH, ("softargmax",))


@pytest.mark.pipeline
def test_the_other_families(smoke, tmp_path):
    """DINOv3 and SAM through every stage, each in a process of its own; the engines run the small experiment."""
    values = copy.deepcopy(smoke)
    values["grid"]["backbones"] = ["dinov3_tiny", "sam_tiny"]
    write_json(tmp_path / "params.yaml", values)
    for job in graph.Graph(params.validate(values, "x")).jobs():
        run_forked(tmp_path, job.stage, *job.cell.values())
    _check_whole_grid(Clone(tmp_path))


def _check_whole_grid(project: Clone) -> None:
    grid = params.load(project.root / "params.yaml").grid
    cells = [path for path in project.metrics() if "/cells/" in path and path.endswith(".json")]
    assert len(cells) == len(grid.backbones) * len(grid.weights) * len(grid.datasets) * len(grid.rules)
    cell = json.loads((project.root / cells[0]).read_text())
    assert set(cell) >= {
        "name",
        "dataset",
        "num_pairs",
        "num_keypoints",
        "protocol",
        "overall_keypoint",
        "provenance",
    }
    page = (project.root / "metrics/smoke/report.html").read_text()
    columns = len(grid.backbones) * len(grid.weights)
    assert page.count('<image href="data:image/jpeg;base64,') == columns * page.count("median</h4>") > 0


@pytest.mark.pipeline
def test_dvc_runs_what_a_change_touches(finished):
    project = finished
    assert project.dvc() == set()
    first = project.metrics()
    for name in ("the window", "the batch size"):
        change, expected = CHANGES[name]
        before = project.metrics()
        project.edit(change)
        assert project.dvc() == expected, name
        assert (project.metrics() != before) == bool(expected)
    assert project.dvc() == set()
    differences = project.run("dvc", "metrics", "diff")
    assert "toy_spair_test/dinov2_tiny/frozen/softargmax.json" in differences
    assert "rules.softargmax.window" in project.run("dvc", "params", "diff")
    cell = "dinov2_tiny/frozen/toy_spair_test/softargmax"
    compare = (sys.executable, "-m", "semcorr", "compare")
    assert project.run(*compare, cell, cell).splitlines()[2].split()[3] == "+0.0"
    table = project.run(*compare, f"HEAD:{cell}", cell)  # another window, against the commit before
    assert table.splitlines()[2].split()[3].rstrip("*") != "+0.0"
    assert "nope: no such git revision" in project.run(*compare, f"nope:{cell}", cell, expect=2)
    project.run("git", "checkout", "-q", "params.yaml")
    output = project.run("dvc", "repro")  # all of it is restored, from the run cache; what git keeps is written anew
    ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}
    assert ran == {"validate", "headline"}
    assert project.metrics() == first

    module = project.root / "semcorr/stages/evaluate.py"
    module.write_text(f'"""Other words."""\n\n# and a comment\n{module.read_text()}\n')
    assert project.dvc() == set()
    module.write_text(f"{module.read_text()}\n_NO_OTHER_RESULT = 1\n")
    assert project.dvc() == _cells(("evaluate",), BOTH)  # the wave ends where the bytes are the same
    assert project.metrics() == first
    _cache_is_linked_and_whole(project, "matches/dinov2_tiny/frozen/toy_spair_test/softargmax.parquet")

    project.edit(setting("evaluat", {}))
    assert "params.yaml: evaluat: unknown key; allowed: preset, grid" in project.run("dvc", "repro", expect=255)


def _cache_is_linked_and_whole(project: Clone, output: str) -> None:
    """What DVC has made is in its cache without a copy, and nothing has written through a link."""
    kept = {path: path.parent.name + path.name for path in (project.root / ".dvc/cache/files/md5").glob("??/*")}
    for path, name in kept.items():
        assert hashlib.md5(path.read_bytes()).hexdigest() == name.removesuffix(".dir")
    linked = any(path.samefile(project.root / output) for path in kept)
    reflink = ["cp", "--reflink=always", output, "clone"]  # what DVC takes first, where the file system can do it
    assert linked or subprocess.run(reflink, cwd=project.root, capture_output=True, check=False).returncode == 0


@pytest.mark.pipeline
def test_snakemake_runs_what_a_change_touches(finished):
    project = finished
    assert project.snakemake() == set()
    for name in ("the window", "the batch size"):
        change, expected = CHANGES[name]
        project.edit(change)
        assert project.snakemake() == expected, name
    assert project.snakemake() == set()
    module = project.root / "semcorr/stages/evaluate.py"
    module.write_text(module.read_text() + "# a comment\n")
    assert project.snakemake() == set()
    module.write_text(module.read_text() + "_NO_OTHER_RESULT = 1\n")
    # It plans ahead.
    assert project.snakemake() == _cells(("evaluate",), BOTH) | DRAWS | {"report", "headline"}
    refused = project.run("snakemake", "--cores", "all", "--config", "threads=2", expect=1)
    assert "--config and --configfile are not supported" in refused
    project.edit(setting("evaluat", {}))
    assert "params.yaml: evaluat: unknown key; allowed: preset, grid" in project.run(
        "snakemake", "--cores", "1", expect=1
    )


@pytest.mark.pipeline
def test_what_one_engine_made_is_not_stale_in_the_other(finished):
    """DVC under A, then B in Snakemake, back to A in DVC, and B made by DVC while Snakemake remembers A."""
    project = finished
    under_a = project.metrics()
    temperature = lambda value: project.edit(setting("rules", "softargmax", "temperature", value))  # noqa: E731
    assert project.snakemake() == set()
    assert project.metrics() == under_a

    temperature(0.5)
    assert project.snakemake() >= SOFT
    under_b = project.metrics()
    assert under_b != under_a
    assert project.dvc() == set()
    assert project.metrics() == under_b

    temperature(0.04)
    assert "changed in params.yaml: rules.softargmax.temperature" in project.run("snakemake", "--dry-run")
    assert "output_file" in project.run("snakemake", "--summary")
    assert "no_such_target" in project.run("snakemake", "--cores", "1", "no_such_target", expect=1)
    assert project.metrics() == under_b  # looking deletes nothing
    assert project.dvc() > SOFT
    assert project.metrics() == under_a
    assert project.snakemake() == set()

    # Snakemake's own records say "made under B"; the files are A's, and params.yaml asks for B.
    temperature(0.5)
    assert project.snakemake() >= SOFT
    assert project.metrics() == under_b
    assert project.dvc() == set()


@pytest.mark.pipeline
def test_a_second_clone_pulls(finished, tmp_path):
    """What another has pushed is current for both engines."""
    first = finished.metrics()
    finished.commit("results")
    finished.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    finished.run("dvc", "push")
    finished.commit("remote")
    project = Clone(tmp_path / "second")
    finished.run("git", "clone", "--quiet", ".", str(project.root))
    project.run("dvc", "pull")
    assert project.metrics() == first
    assert project.snakemake() == set()
    assert project.dvc() == set()


@pytest.mark.pipeline
def test_other_presets_results_stay(finished, tmp_path):
    """An experiment under another preset, in the workspace and beside it; then files of both are as they were."""
    finished.commit("results")
    first = finished.metrics()
    other = tmp_path / "other.yaml"
    other.write_text((finished.root / "params.yaml").read_text().replace("preset: smoke", "preset: other"))
    finished.run(sys.executable, "-m", "semcorr", "preset", str(other))
    folders = ("features", "matches", "checkpoints", "data")
    before = {path for folder in folders for path in (finished.root / folder).rglob("*")}
    assert finished.dvc() == {*_cells(("evaluate",), BOTH), *DRAWS, LAYERS, "report", "headline"}
    finished.commit("other")
    finished.run("dvc", "exp", "run", "-S", "evaluate.bootstrap=150")
    assert "bootstrap: 150" in (finished.root / "params.yaml").read_text()
    assert {name: content for name, content in finished.metrics().items() if "/smoke/" in name} == first
    assert before <= {path for folder in folders for path in (finished.root / folder).rglob("*")}
    finished.run("git", "checkout", "-q", "HEAD~1", "--", "params.yaml", "dvc.lock")
    assert finished.snakemake() == set()
    assert finished.dvc() == set()
