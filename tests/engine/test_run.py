"""`semcorr run`: what it says of engines' output, what it repairs, and one run through each engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import setting

from semcorr import params
from semcorr.engine import graph, run
from semcorr.engine.plan import Cost, Step
from semcorr.errors import UserError
from semcorr.report.plain import WIDTH, plain


@pytest.fixture
def steps(smoke) -> list[Step]:
    """Three jobs of three seconds, and one of unknown size."""
    experiment = graph.Graph(params.validate(smoke, "x"))
    jobs = [experiment.job("fetch", "toy_willow"), experiment.job("fetch", "toy_spair_trn"), experiment.job("report")]
    planned = [Step(job=job, why="", cost=Cost(seconds=3.0)) for job in jobs]
    return [*planned, Step(job=experiment.job("headline"), why="", cost=None)]


def test_the_lines_of_dvc(steps):
    shown: list[str] = []
    lines = [
        "Running stage 'validate':",
        "> python -m semcorr validate",
        "params.yaml is valid",
        "",
        "Running stage 'fetch@toy_willow':",
        "> python -m semcorr fetch toy_willow",
        "toy_willow: 8 images",
        "Updating lock file 'dvc.lock'",
        "Stage 'fetch@toy_spair_trn' is cached - skipping run, checking out outputs",
        "Stage 'weights@x-y' didn't change, skipping",
        "Running stage 'report':",
    ]
    run._follow_dvc(iter([f"{line}\n" for line in lines]), run.Progress(steps, 1.0, shown.append), shown.append)
    assert shown == [
        "[1/4] fetch toy_willow (00:09 left)",
        "    toy_willow: 8 images",
        "[2/4] fetch toy_spair_trn (restored from the cache)",
        "[3/4] report (00:03 left)",
    ]


def test_the_lines_of_snakemake(steps):
    shown: list[str] = []
    lines = [
        "stale: fetch@toy_willow: is missing",
        "rule fetch:",
        "    output: data/toy_willow/images.parquet",
        "    wildcards: dataset=toy_willow",
        "    resources: tmpdir=/tmp",
        "",
        "localrule report:",
        "    output: metrics/smoke/report.html",
        "",
        "Error in rule report:",
        "    log: logs/report.log",
    ]
    run._follow_snakemake(iter([f"{line}\n" for line in lines]), run.Progress(steps, 1.0, shown.append), shown.append)
    assert shown[1:3] == ["[1/4] fetch toy_willow (00:09 left)", "[2/4] report (00:06 left)"]
    assert shown[-1].strip() == "log: logs/report.log"  # what failed is told whole


def test_locks_of_killed_engines_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")  # which DVC sends from a process that outlives it
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    locks = [Path(".dvc/tmp/rwlock"), Path(".snakemake/locks/0.input.lock")]
    for lock in locks:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    # Another process at work here, as its name says.
    code = "from semcorr.engine.at_work import at_work\n"
    code += "with at_work('python -m semcorr x'): print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert run.repair() == []
        assert all(lock.exists() for lock in locks)
        other.communicate(b"\n")
    assert sorted(run.repair()) == sorted(map(str, locks))
    assert not any(lock.exists() for lock in locks)
    locks[0].write_text('{"read": {}, "write": {}}')  # DVC's own, in use or not
    assert run.repair() == []
    assert locks[0].exists()


def test_without_dvc_locks_of_snakemake_are_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = Path(".snakemake/locks/0.output.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert run.repair() == [str(lock)]
    assert not lock.exists()


def test_an_engine_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "Snakefile"):
        Path(name).touch()
    monkeypatch.setattr(sys, "path", [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "snakemake"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"snakemake is not installed.*semcorr\[workflow\]"):
        run.require_project("snakemake")


def test_nothing_to_do_is_said_without_torch():
    code = "import sys; from semcorr.engine import run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tables_fit_a_terminal():
    head = ["backbone", "weights", "rule", *(f"PCK@0.{t:02d}" for t in (5, 10, 15, 20)), "95 % interval of PCK@0.10"]
    head += ["PCK@0.10 per image", "PCK@0.10 per category", "PCK@0.10, reference image"]
    rows = [["a_network", w, "argmax", "1.0", v, "3.0", "4.0", "1.0 to 2.0", "5.0", "6.0", "7.0"] for w, v in PAIRS]
    lines = ["### data", "", "word " * 40, "", *("| " + " | ".join(row) + " |" for row in (head, ["---"] * 11, *rows))]
    text = plain("\n".join(lines))
    assert max(map(len, text.splitlines())) <= WIDTH
    table = [line for line in text.splitlines() if line.startswith(("weights", "frozen", "last2"))]
    assert [line.split()[:3] for line in table[1:]] == [["frozen", "1.0", "2.0"], ["last2", "1.0", "12.0*"]]
    assert len({line.index(".") for line in table[1:]}) == 1  # aligned
    assert "backbone a_network, rule argmax:" in text


PAIRS = [("frozen", "2.0"), ("last2", "**12.0**")]


@pytest.mark.pipeline
def test_run_brings_results_up_to_date(finished):
    """A change of the scores through DVC, a missing report through Snakemake; then nothing is to do."""
    finished.edit(setting("evaluate", "seed", 5))
    elsewhere = ["env", f"PATH={os.defpath}"]  # as without an activated environment
    output = finished.run(*elsewhere, sys.executable, "-m", "semcorr", "run")
    assert "[1/9] evaluate dinov2_tiny" in output
    assert "PCK in percent" in output
    (finished.root / "metrics/smoke/report.html").unlink()
    output = finished.run(*elsewhere, sys.executable, "-m", "semcorr", "run", "--engine", "snakemake")
    assert "[1/2] report" in output
    assert "[2/2] headline" in output
    assert finished.run(sys.executable, "-m", "semcorr", "run").startswith("Everything is up to date.")
