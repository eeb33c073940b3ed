"""What goes wrong: after each fault either a clear error or a correct result, never a wrong one, and nothing lost."""

import contextlib
import copy
import hashlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import Clone, fill, fork, run_forked, setting, small

from semcorr import cli, params
from semcorr.artifacts.files import remove, write_json
from semcorr.engine import code, graph
from semcorr.engine.current import Current, noted
from semcorr.errors import UserError

IN_THE_WAY = (
    "at work in this folder",
    "another process is writing",
    "is busy",
    "Unable to acquire lock",
    "something has changed while Snakemake planned",
)  # what a latecomer may say
EVERY = graph.STAGES.keys() - {"fuse"}  # of the small experiment, which has one network
ENGINES = {"dvc": ("dvc", "repro"), "snakemake": ("snakemake", "--cores", "1")}


@pytest.mark.pipeline
def test_an_engine_killed_in_every_stage(finished):
    """SIGKILL of DVC and of Snakemake by turns, with their stages or alone, so that an orphan meets what comes next.

    They begin with nothing, caches included, and one goes on where the other was killed, until each stage has seen it.
    What one job at a time gives is what Snakemake had given undisturbed, on all cores at once.
    """
    made = finished.metrics()
    ignored = ("data", "features", "checkpoints", "matches", "metrics", "logs")
    for name in (*ignored, ".snakemake", ".dvc/cache", ".dvc/tmp", ".semcorr"):
        shutil.rmtree(finished.root / name, ignore_errors=True)
    (finished.root / "dvc.lock").unlink()
    rng, turn = random.Random(0), 0
    jobs = list(graph.Graph(params.load(finished.root / "params.yaml")).jobs())
    left = EVERY - {"validate"}
    within = dict.fromkeys(left, 3.0)  # seconds, of which 1 or 2 go into starting
    while left:
        engine = ("snakemake", "dvc")[turn % 2]
        shutil.rmtree(finished.root / ".snakemake/locks", ignore_errors=True)  # as `snakemake --unlock`, in no time
        running, said = finished.start(*ENGINES[engine])
        while running.poll() is None and (stage := _at_work(said)) not in left:
            time.sleep(0.02)
        if running.poll() is not None:
            if running.returncode == 0:  # what was left came out of the run cache
                _forget(finished, jobs, left)
                turn += 1
            else:
                _mend(finished, said)
            continue
        moment = time.monotonic() + rng.uniform(0, within[stage])
        while running.poll() is None and _at_work(said) == stage and time.monotonic() < moment:
            time.sleep(0.02)
        ended = running.poll() is not None  # by itself, before the moment came
        if ended and running.returncode:
            _mend(finished, said)
        elif not ended and turn // 2 % 2:
            running.kill()
        elif not ended:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        turn += 1
        if not ended and _at_work(said) == stage:
            left.remove(stage)
        else:  # the stage was done before the moment came, and is to be met again
            within[stage] /= 2
            _forget(finished, jobs, {stage})
    finished.run("snakemake", "--unlock")
    for command in ENGINES.values():
        for _ in range(4):
            again, said = finished.start(*command)
            if again.wait() == 0:
                break
            _mend(finished, said)
        assert finished.metrics() == made


def _forget(project: Clone, jobs: list[graph.Job], stages: set[str]) -> None:
    """Take away what some stages have made, DVC's memory of it included, so that they are met again."""
    shutil.rmtree(project.root / ".dvc/cache/runs", ignore_errors=True)
    for job in jobs:
        if job.stage in stages:
            _remove_outputs(job, project.root)


TORN = "'./dvc.lock' "  # is invalid, or: validation failed
EMPTY = "JSON structure is corrupted"


def _mend(project: Clone, said: Path) -> None:
    """What README says to do where an engine says why it did not begin.

    An orphan is at work, or what DVC writes in place was not written whole: dvc.lock, or its table of who is at work.
    """
    if TORN in said.read_text():
        (project.root / "dvc.lock").unlink()
    elif EMPTY in said.read_text():
        (project.root / ".dvc/tmp/rwlock").unlink()
    else:
        assert any(reason in said.read_text() for reason in IN_THE_WAY), said.read_text()


@pytest.mark.pipeline
def test_a_lock_file_that_was_being_written(finished):
    """DVC writes dvc.lock in place: killed then, it leaves a part. Without it, all comes back from the run cache."""
    made, lock = finished.metrics(), finished.root / "dvc.lock"
    whole = lock.read_text()
    for part in ("", whole[: whole.index("md5:", 300) + 2]):
        lock.write_text(part)
        assert TORN in finished.run("dvc", "repro", expect=255)
        assert "Nothing to be done" in finished.run("snakemake", "--cores", "1")
        assert "Nothing would run" in finished.run("python", "-m", "semcorr", "plan")  # the jobs' own notes say so
    lock.unlink()
    assert finished.run("dvc", "repro").count("Running stage") == 2  # validate, headline; all else comes back
    assert finished.metrics() == made
    assert lock.read_text() == whole
    lock.unlink()
    assert finished.snakemake() == set()  # with nothing to do, it tells DVC what that does not know
    assert finished.dvc() == set()
    table = finished.root / ".dvc/tmp/rwlock"
    table.write_text("")
    assert EMPTY in finished.run("dvc", "repro", expect=255)
    table.unlink()
    assert finished.dvc() == set()
    assert finished.metrics() == made


def _at_work(said: Path) -> str | None:
    """The stage that an engine has said last that it starts."""
    started = re.findall(r"^(?:Running stage '|(?:local)?rule )(\w+)", said.read_text(), re.MULTILINE)
    return started[-1] if started else None


def test_a_stage_killed_at_any_moment(smoke, tmp_path):
    """Each stage of the small experiment, twice, at random moments: what is there is whole, and ends the same."""
    values = copy.deepcopy(smoke)
    small(values)
    write_json(tmp_path / "params.yaml", values)
    rng = random.Random(0)
    tried = set()
    for job in graph.Graph(params.validate(values, "x")).jobs():
        words = (job.stage, *job.cell.values())
        run_forked(tmp_path, *words)
        if job.stage in tried:
            continue
        tried.add(job.stage)
        made = _content(job, tmp_path)
        _remove_outputs(job, tmp_path)
        start = time.monotonic()
        run_forked(tmp_path, *words)
        took = time.monotonic() - start
        _remove_outputs(job, tmp_path)
        killed = 0
        for _ in range(40):
            process = fork(tmp_path, *words)
            process.join(rng.uniform(0, took))
            process.kill()
            process.join()
            assert _content(job, tmp_path).items() <= made.items()
            if process.exitcode == -signal.SIGKILL:
                killed += 1  # the next one meets what this one has left
            else:
                assert process.exitcode == 0
                assert _content(job, tmp_path) == made
                _remove_outputs(job, tmp_path)
            if killed == 2:
                break
        assert killed == 2, job.stage
        run_forked(tmp_path, *words)
        assert _content(job, tmp_path) == made
    assert tried == EVERY


def _remove_outputs(job: graph.Job, root: Path) -> None:
    for path in job.outputs.values():
        remove(root / path)
    if job.stage == "fetch":
        remove(root / "data/sources")  # what is drawn once for all splits


def _content(job: graph.Job, root: Path) -> dict[Path, bytes]:
    """All files of a job's outputs."""
    files = [file for path in job.outputs.values() for file in [root / path, *(root / path).rglob("*")]]
    return {file: file.read_bytes() for file in files if file.is_file() and file.suffix != ".partial"}


@pytest.mark.pipeline
def test_two_engines_at_once(finished):
    """DVC and Snakemake start together; each ends well or says what is in its way, and the end is right."""
    made = finished.metrics()
    shutil.rmtree(finished.root / "metrics")
    for running, said in [finished.start(*command) for command in ENGINES.values()]:
        assert running.wait() == 0 or any(reason in said.read_text() for reason in IN_THE_WAY), said.read_text()
    for command in ENGINES.values():
        finished.run(*command)
    assert finished.metrics() == made


def _damage(project: Clone) -> list[Path]:
    """Cut a few files in half, each as a new file, since engines may have linked the old one elsewhere."""
    names = [
        "features/dinov2_tiny/frozen/toy_spair_test.h5",
        "matches/dinov2_tiny/frozen/toy_spair_test/argmax.parquet",
        "metrics/smoke/cells/dinov2_tiny/frozen/toy_spair_test/softargmax.json",
        "metrics/smoke/cells/dinov2_tiny/last1/toy_spair_test/argmax.parquet",
    ]
    for name in names:
        content = (project.root / name).read_bytes()
        (project.root / name).unlink()
        (project.root / name).write_bytes(content[: len(content) // 2])
    return [project.root / name for name in names]


@pytest.mark.pipeline
def test_truncated_files_are_made_again(finished):
    made = finished.metrics()
    for name, engine in ENGINES.items():
        if name == "snakemake":  # what it makes goes into DVC's cache, although dvc.lock has just these bytes already
            shutil.rmtree(finished.root / ".dvc/cache")
        halves = {path: path.read_bytes() for path in _damage(finished)}
        finished.run(*engine)
        assert finished.metrics() == made
        for path, half in halves.items():
            assert path.read_bytes()[: len(half)] == half
            assert path.stat().st_size > len(half)
    for path in halves:
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        assert (finished.root / f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}").exists()


@pytest.mark.pipeline
def test_a_truncated_file_of_any_format_is_stale(smoke, tmp_path, monkeypatch):
    """What is no longer what was made, and what a stage that reads it refuses: each stage's file."""
    monkeypatch.chdir(tmp_path)
    values = copy.deepcopy(smoke)
    small(values)
    write_json(tmp_path / "params.yaml", values)
    experiment = graph.Graph(params.load())
    jobs = [job for job in experiment.jobs() if job.stage != "validate"]
    tried = set()
    for job in jobs:
        _run(job.stage, *job.cell.values())
    assert Current(experiment).stale == {}
    for job in jobs:
        path = next(iter(job.outputs.values()))
        if job.stage in tried or path.is_dir():
            continue
        tried.add(job.stage)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert Current(experiment).stale[job.name] == f"{path} was changed after it was made"
        readers = [one for one in jobs if path in one.inputs.values() and path.suffix != ".html"]  # only waited for
        for reader in readers[:1]:
            with pytest.raises(UserError, match=f"{path.name}: (not a complete file|damaged|cannot be read)"):
                _run(reader.stage, *reader.cell.values())
        path.write_bytes(content)
        assert Current(experiment).stale == {}


@pytest.mark.pipeline
def test_clock_path_and_hands(finished, tmp_path):
    """Times from the future, a path with a space and letters of other alphabets, and a number changed by hand."""
    strange = tmp_path / "sem corr, Ähnlichkeit 対応"
    finished.root.rename(strange)
    project = Clone(strange)
    made = project.metrics()
    files = [project.root / name for name in ("data", "features", "semcorr")]
    files = [path for folder in files for path in sorted(folder.rglob("*")) if path.is_file()]

    def set_times(when: float) -> None:
        for path in files:
            os.utime(path, (when, when))

    set_times(time.time() + 86_400)
    assert project.snakemake() == set()
    assert project.dvc() == set()
    trunks = params.load(project.root / "params.yaml").grid.trunks
    project.edit(setting("grid", "trunks", trunks[::-1]))  # which the report lists
    assert project.snakemake() == {"report", "headline"}
    project.edit(setting("grid", "trunks", trunks))
    project.snakemake()
    assert project.metrics() == made

    cell = project.root / "metrics/smoke/cells/dinov2_tiny/frozen/toy_spair_test/argmax.json"
    values = json.loads(cell.read_text())
    values["overall_keypoint"]["PCK@0.10"]["mean"] = 0.999
    cell.unlink()
    cell.write_text(json.dumps(values))
    assert "argmax.json was changed after it was made" in project.run("snakemake", "--dry-run")
    draws = {f"draw@dinov2_tiny-{weights}-toy_spair_test" for weights in ("frozen", "last1")}
    assert project.snakemake() == {"evaluate@dinov2_tiny-frozen-toy_spair_test-argmax", "report", "headline"} | draws
    assert project.metrics() == made
    assert project.dvc() == set()


@pytest.mark.pipeline
def test_experiments_in_temporary_folders(finished):
    """Two queued experiments side by side, in folders of their own; the workspace stays as it is."""
    made = finished.metrics()
    without = ("-S", "grid.layers.backbones=[]", "-S", "grid.layers.datasets=[]")  # which saves two passes of a network
    finished.run("dvc", "exp", "run", "--queue", "-S", "evaluate.bootstrap=150,160", *without)
    finished.run("dvc", "queue", "start", "--jobs", "2")
    try:
        for _ in range(40):
            time.sleep(4)  # asking costs a second of a core
            status = finished.run("dvc", "queue", "status")
            if status.count("Success") == 2 or "Failed" in status:
                break
        assert status.count("Success") == 2, status
    finally:
        finished.run("dvc", "queue", "stop", "--kill")
    wanted = "Experiment|.*dinov2_tiny/frozen/argmax.json:pck@0.10$|.*bootstrap$"
    table = finished.run("dvc", "exp", "show", "--md", "--drop", ".*", "--keep", wanted)
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    assert head[0] == "Experiment"
    assert [name.rpartition("/")[2] for name in head[1:]] == ["argmax.json:pck@0.10", "evaluate.bootstrap"]
    shown = {row[2]: float(row[1]) for row in rows}
    assert shown["150"] == shown["160"] == shown["100"]  # the bootstrap moves intervals alone
    assert finished.metrics() == made


def _small_project(smoke: dict, folder: Path) -> None:
    write_json(folder / "params.yaml", {**smoke, "grid": {**smoke["grid"], "backbones": ["dinov2_tiny"]}})


def _run(*words: str) -> str:
    return cli.run_stage(cli.parser().parse_args(list(words)))


def test_a_folder_that_may_not_be_written(smoke, monkeypatch):
    """features/ is read-only: one line that says so, and nothing in it has changed."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.chdir(folder)
    user = os.geteuid()
    try:
        _small_project(smoke, folder)
        for words in (("fetch", "toy_willow"), ("weights", "dinov2_tiny", "frozen")):
            _run(*words)
        features = folder / "features/dinov2_tiny/frozen"
        features.mkdir(parents=True)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o777)
        features.chmod(0o555)
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(UserError, match=r"toy_willow\.h5: cannot be written: you may not write there"):
            _run("extract", "dinov2_tiny", "frozen", "toy_willow")
        assert list(features.iterdir()) == []
    finally:
        if user == 0:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_disk_that_is_full_and_one_that_is_read_only(smoke, tmp_path, monkeypatch, small_disk):
    """All outputs on a disk of its own: each stage says in a line what is wrong, and changes nothing there."""
    monkeypatch.chdir(tmp_path)
    values = copy.deepcopy(smoke)
    small(values)
    write_json(tmp_path / "params.yaml", values)
    for name in ("data", "features", "checkpoints", "matches", "metrics"):
        (small_disk / name).mkdir()
        (tmp_path / name).symlink_to(small_disk / name)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    def files() -> set[Path]:
        return {path for path in small_disk.rglob("*") if path.is_file() and path.suffix != ".lock"}

    tried = set()
    for job in graph.Graph(params.load()).jobs():
        words = (job.stage, *job.cell.values())
        if job.stage not in tried:
            tried.add(job.stage)
            before = files()
            filler = fill(small_disk)
            with pytest.raises(UserError, match="cannot be written: the disk is full"):
                _run(*words)
            filler.unlink()
            assert files() == before
            remount("ro")
            with pytest.raises(UserError, match="cannot be written: the file system is read-only"):
                _run(*words)
            remount("rw")
            assert files() == before
        _run(*words)
        assert all(path.exists() for path in job.outputs.values())
    assert tried == EVERY


@contextlib.contextmanager
def _no_room(limit: int):
    """No file may pass `limit` bytes."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_no_room(smoke, tmp_path, monkeypatch, capsys):
    """No file may pass 2 kB: each stage says so in a line and leaves nothing half-written; with room it goes well."""
    monkeypatch.chdir(tmp_path)
    _small_project(smoke, tmp_path)
    cell = ("dinov2_tiny", "frozen", "toy_willow")
    for words in (
        ("fetch", "toy_willow"),
        ("weights", "dinov2_tiny", "frozen"),
        ("extract", *cell),
        ("match", *cell, "argmax"),
        ("evaluate", *cell, "argmax"),
        ("match", *cell, "softargmax"),
        ("evaluate", *cell, "softargmax"),
        ("draw", *cell),
    ):
        job = graph.Graph(params.load()).job(*words)
        with _no_room(2000), pytest.raises(UserError, match="cannot be written: the file system or a limit"):
            _run(*words)
        assert not any(path.exists() for path in job.outputs.values() if path.suffix), words
        assert not list(tmp_path.rglob("*.partial")), words
        _run(*words)
        assert all(path.exists() for path in job.outputs.values())


def test_one_at_a_time(tmp_path, monkeypatch):
    """Stages go side by side, one job is never run twice at once, and who wants to be alone is told who is there."""
    monkeypatch.chdir(tmp_path)
    hold = "import sys, time; from semcorr.engine.at_work import at_work\n"
    hold += "with at_work(sys.argv[1], alone=len(sys.argv) > 2): print(1, flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}

    def start(*words: str) -> subprocess.Popen:
        command = [sys.executable, "-c", hold, *words]
        running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.held = running.stdout.readline() == "1\n"
        return running

    def stop(*running: subprocess.Popen) -> None:
        for one in running:
            one.kill()
            one.communicate()

    stages = [start("match a"), start("match b")]
    late = [start("match a"), start("snakemake", "alone")]
    assert [one.held for one in (*stages, *late)] == [True, True, False, False]
    assert f"at work in this folder: match a (process {stages[0].pid})" in late[0].stderr.read()
    said = late[1].stderr.read()
    assert all(f"(process {one.pid})" in said for one in stages)
    stop(*stages, *late)
    again = start("snakemake", "alone")  # of those that were killed, nothing is left
    assert again.held
    stop(again)


def test_an_image_changed_by_hand(smoke, tmp_path, monkeypatch):
    """One of a dataset's images is edited, put back, removed; another is put beside it; all are touched."""
    monkeypatch.chdir(tmp_path)
    _small_project(smoke, tmp_path)
    _run("fetch", "toy_willow")
    experiment = graph.Graph(params.load())

    def why() -> str | None:
        return Current(experiment).stale.get("fetch@toy_willow")

    folder = experiment.job("fetch", "toy_willow").outputs["folder"]
    changed = f"{folder} was changed after it was made"
    image = next(folder.rglob("*.png"))
    content = image.read_bytes()
    assert why() is None
    image.write_bytes(content + b" ")
    assert why() == changed
    image.write_bytes(content)
    assert why() is None
    image.rename(image.with_name("other.png"))
    assert why() == changed
    image.with_name("other.png").rename(image)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert why() is None


def test_what_a_job_reads_must_not_change_while_it_runs(smoke, tmp_path, monkeypatch):
    """An input, or under DVC the code, is another one at the end: no note, so what was made is not current."""
    monkeypatch.chdir(tmp_path)
    _small_project(smoke, tmp_path)
    _run("fetch", "toy_willow")
    experiment = graph.Graph(params.load())
    job = experiment.job("extract", "dinov2_tiny", "frozen", "toy_willow")
    _run("weights", "dinov2_tiny", "frozen")
    with (
        pytest.raises(UserError, match=r"images\.parquet: has changed while extract@.* read it"),
        noted(job, experiment),
    ):
        job.inputs["images"].write_bytes(b"")
    assert job.name in Current(experiment).stale
    _run("fetch", "toy_willow")
    monkeypatch.setenv("DVC_STAGE", "x")
    _run("validate")
    _run(job.stage, *job.cell.values())
    assert job.name not in Current(experiment).stale
    other = params.read_yaml(Path("params.yaml"))
    other["threads"] += 1
    with pytest.raises(UserError, match=r"params\.yaml has changed while extract@"), noted(job, experiment):
        write_json(Path("params.yaml"), other)
    _small_project(smoke, tmp_path)
    (graph.BASIS / "code/extract").write_text("other code\n")
    with pytest.raises(UserError, match="code or data have changed since this run began"):
        _run(job.stage, *job.cell.values())


def test_code_must_not_change_while_a_job_loads_it(smoke, tmp_path, monkeypatch):
    """What runs would be the old code, or the new."""
    monkeypatch.chdir(tmp_path)
    _small_project(smoke, tmp_path)
    shutil.copytree(Path(cli.__file__).parent, tmp_path / "semcorr")
    monkeypatch.setattr(code, "ROOT", tmp_path)
    experiment = graph.Graph(params.load())
    job = experiment.job("evaluate", "dinov2_tiny", "frozen", "toy_willow", "argmax")
    module, imported = tmp_path / "semcorr/pck.py", importlib.import_module
    source = module.read_text()
    with noted(job, experiment):
        for path in job.outputs.values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    def late(name: str) -> ModuleType:
        module.write_text(f"{source}\n_CHANGED = 1\n")
        return imported(name)

    monkeypatch.setattr(importlib, "import_module", late)
    with pytest.raises(UserError, match="its code has changed while it was loaded"), noted(job, experiment):
        pytest.fail("it ran")


def test_a_record_is_dvcs_or_the_jobs_own(tmp_path, monkeypatch):
    """What a job made is what it noted, or what dvc.lock says; anything else, and no record at all, is stale."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("")
    job = graph.Job(
        name="evaluate@r",
        stage="evaluate",
        cell={"rule": "r"},
        settings={"evaluate": {"seed": 1}},
        inputs={},
        outputs={"cell": Path("out.json")},
        basis={},
        reads=[],
        expects={},
        fingerprint="f",
    )
    experiment = SimpleNamespace(jobs=lambda: [job], params=None)

    def why() -> str | None:
        return Current(experiment).stale.get("evaluate@r")

    def lock(md5: str, seed: int = 1, command: str = job.command) -> None:
        out = {"path": "out.json", "md5": md5}
        stage = {"cmd": command, "params": {"params.yaml": {"evaluate": {"seed": seed}}}, "outs": [out]}
        Path("dvc.lock").write_text(json.dumps({"stages": {"evaluate@r": stage}}))

    assert why() == "out.json is missing"
    with noted(job, experiment):
        Path("out.json").write_text("one")
    assert why() is None
    os.utime("out.json", (1, 1))
    assert why() is None
    Path("out.json").write_text("two")
    assert why() == "out.json was changed after it was made"
    lock("b8a9f715dbb64fd5c56e7783c6820a61")  # the MD5 of "two"
    assert why() is None
    Path("out.json").write_text("six")
    assert why() == "out.json was changed after it was made"
    Path("out.json").write_text("two")
    shutil.rmtree(".semcorr/notes")
    assert why() is None
    lock("b8a9f715dbb64fd5c56e7783c6820a61", seed=2)
    assert why() == "changed in params.yaml: evaluate.seed"
    lock("b8a9f715dbb64fd5c56e7783c6820a61", command="python -m semcorr other r")
    assert why() == "its command has changed"
    for torn in ("", "stages: {", "stages: 3", "stages: {evaluate@r: 3}"):
        Path("dvc.lock").write_text(torn)
        assert why() == "no record of how it was made"
