"""Stages forked from a process that has the libraries: what they do is what they do by themselves, only sooner."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from semcorr.artifacts.files import write_json
from semcorr.engine import warm

ROOT = Path(__file__).parents[2]
B = "dinov2_tiny"


@pytest.fixture(scope="module")
def environment():
    """What a job needs to find the process, once that is ready."""
    with warm.kept() as more:
        for _ in range(1200):
            if _forked(ROOT, "--version", **more)[0] != ALONE:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the process was never ready")
        yield more


ALONE = 99  # the exit code of `HAND_OVER` if nobody answers
HAND_OVER = f"""
import sys
from semcorr.engine import warm
code = warm.hand_over(sys.argv[1:])
sys.exit({ALONE} if code is None else code)
"""


def _forked(folder: Path, *words: str, **more: str) -> tuple[int, str, str]:
    """What a fork says, and no other process."""
    return _run(folder, [sys.executable, "-P", "-c", HAND_OVER, *words], more)


def _semcorr(folder: Path, *words: str, **more: str) -> tuple[int, str, str]:
    return _run(folder, [sys.executable, "-m", "semcorr", *words], more)


def _run(folder: Path, command: list[str], more: dict[str, str]) -> tuple[int, str, str]:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_stage_writes_the_same(environment, smoke, tmp_path):
    """Bytes, exit codes and what is said; also of a mistake."""
    values = copy.deepcopy(smoke)
    values["grid"] |= {"backbones": [B], "rules": ["argmax"]}
    said = []
    for name, run, more in (("alone", _semcorr, {}), ("warm", _forked, environment)):
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "params.yaml", values)
        stages = [
            ["validate"],
            ["fetch", "toy_willow"],
            ["weights", B, "frozen"],
            ["extract", B, "frozen", "toy_willow"],
        ]
        stages += [["match", B, "frozen", "toy_willow", "argmax"], ["extract", B, "nothing", "toy_willow"], ["nothing"]]
        said.append([run(folder, *words, **more) for words in stages])
    assert [[code for code, *_ in one] for one in said] == [[0, 0, 0, 0, 0, 2, 2]] * 2
    assert [out for _, out, _ in said[0]] == [out for _, out, _ in said[1]]
    assert [error for *_, error in said[0]][-2:] == [error for *_, error in said[1]][-2:]
    for path in ("features", "matches", "data/toy_willow"):
        files = [file for file in sorted((tmp_path / "alone" / path).rglob("*")) if file.is_file()]
        assert files
        for file in files:
            assert file.read_bytes() == (tmp_path / "warm" / file.relative_to(tmp_path / "alone")).read_bytes(), file


def test_the_code_on_the_disk_is_what_runs(environment, tmp_path):
    """Not what lay there when the process began."""
    shutil.copytree(ROOT / "semcorr", tmp_path / "semcorr", ignore=shutil.ignore_patterns("__pycache__"))
    for version in ("7.7.7", "8.8.8"):
        file = tmp_path / "semcorr/__init__.py"
        file.write_text(f'"""Another."""\n__version__ = "{version}"\n')
        os.utime(file, (int(version[0]), int(version[0])))  # bytecode of before is of another second
        assert _forked(tmp_path, "--version", **environment)[:2] == (0, f"semcorr {version}\n")


def _forks() -> set[int]:
    return {
        fork.pid
        for server in psutil.Process().children()
        if "semcorr.engine.warm" in server.cmdline()
        for fork in server.children()
    }


def _started(environment, tmp_path) -> tuple[subprocess.Popen, int]:
    """A command that does not end by itself, and the process that runs it."""
    before = _forks()
    (tmp_path / "semcorr.py").write_text("import time\ntime.sleep(600)\n")  # which comes before the installed one
    asking = subprocess.Popen(
        [sys.executable, "-P", "-c", HAND_OVER],
        cwd=tmp_path,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if new := _forks() - before:
            return asking, new.pop()
        time.sleep(0.05)
    raise AssertionError("nothing was forked")


def _has_ended(number: int) -> bool:
    for _ in range(200):
        if not psutil.pid_exists(number):
            return True
        time.sleep(0.05)
    return False


def test_a_stage_ends_with_the_process_that_asked(environment, tmp_path):
    for how in (signal.SIGKILL, signal.SIGTERM):
        asking, number = _started(environment, tmp_path)
        asking.send_signal(how)
        asking.communicate()
        assert _has_ended(number), how


def test_a_killed_stage_fails(environment, tmp_path):
    asking, number = _started(environment, tmp_path)
    os.kill(number, signal.SIGKILL)
    _, said = asking.communicate()
    assert asking.returncode == 137
    assert "its process was killed" in said


def test_it_ends_with_the_run():
    with warm.kept() as more:
        folder = Path(more[warm.VARIABLE]).parent
        [server] = [one for one in psutil.Process().children() if str(folder / "warm") in one.cmdline()]
    assert not folder.exists()
    assert not server.is_running()


def test_without_an_answer_a_command_runs_by_itself(tmp_path):
    code, said, _ = _semcorr(tmp_path, "--version", **{warm.VARIABLE: str(tmp_path / "nobody")})
    assert (code, said.split()[0]) == (0, "semcorr")
