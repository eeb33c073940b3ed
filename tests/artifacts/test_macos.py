"""What macOS lacks of Linux is not needed, as far as a Linux machine can show: Python runs without it here."""

import errno
import fcntl
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable

import numpy as np
import pytest

from semcorr.artifacts import files, store
from semcorr.artifacts.files import write_json
from semcorr.errors import UserError
from semcorr.geometry import Grid

LINUX_ONLY = ("posix_fallocate", "posix_fadvise", "sched_getaffinity", "copy_file_range", "memfd_create", "fdatasync")
# The module fcntl differs there: libraries that know both systems may have it, semcorr may not.
WITHOUT = f"""
import builtins, os
for name in {LINUX_ONLY}:
    delattr(os, name)
normal = builtins.__import__
def without_fcntl(name, globals=None, *rest, **more):
    if name == "fcntl" and str((globals or {{}}).get("__name__")).startswith("semcorr"):
        raise ModuleNotFoundError("semcorr imports fcntl")
    return normal(name, globals, *rest, **more)
builtins.__import__ = without_fcntl
"""
STORE = """
import sys
import numpy as np
from pathlib import Path
from filelock import Timeout
from semcorr.artifacts import files, store
from semcorr.geometry import Grid

path, grid = Path(sys.argv[1]), Grid(image_size=(90, 120), resized_size=(84, 112), stride=14)
array = np.arange(240, dtype="float16").reshape(6, 8, 5)
record = {"fingerprint": "f" * 64, "stage": "extract", "settings": {}, "inputs": {}}
with store.create(path, record, {"a": store.Entry(shape=array.shape, grid=grid)}, "float16") as writer:
    writer.add("a", array)
with store.Store(path, "f" * 64) as opened:
    assert (opened.array("a") == array).all()
for _ in range(2):
    with files.alone(path), files.locked(path.with_name("lock")):
        try:
            files.take_lock(path.with_name("lock"), 0)
        except Timeout:
            continue
        raise AssertionError("two hold one lock")
assert files.has_locks(path.parent)
"""
STAGES = """
from semcorr import cli
for words in ("validate", "fetch toy_willow", "weights dinov2_tiny frozen", "extract dinov2_tiny frozen toy_willow",
              "trunk dinov2_tiny toy_willow"):
    cli.main(words.split())
cli.main(["store", "features/dinov2_tiny/frozen/toy_willow.h5"])
"""


@pytest.fixture
def without(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs Python without what macOS lacks."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python/sitecustomize.py").write_text(WITHOUT)
    paths = [str(tmp_path / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def run(code: str, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_they_are_really_gone(without):
    assert without("import os; assert hasattr(os, 'fdatasync')").returncode
    probe = "import sys; sys.modules[__name__].__name__ = 'semcorr.x'; import fcntl"
    assert "semcorr imports fcntl" in without(probe).stderr


def test_stores_and_locks(without, tmp_path):
    """The bytes are the same as with them."""
    for name, done in (("a.h5", without(STORE, "a.h5")), ("b.h5", _normal(tmp_path, STORE, "b.h5"))):
        assert not done.returncode, f"{name}: {done.stderr}"
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def _normal(folder, code: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False)


def test_features_are_extracted(without, smoke, tmp_path):
    write_json(tmp_path / "params.yaml", {**smoke, "grid": {**smoke["grid"], "backbones": ["dinov2_tiny"]}})
    done = without(STAGES)
    assert not done.returncode, done.stderr
    assert "all checksums right" in done.stdout


def test_a_small_disk_is_noticed_before_the_work(tmp_path, monkeypatch):
    """Nothing can be reserved; whether there is room is looked at."""
    monkeypatch.delattr(os, "posix_fallocate")
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage(1000))
    grid = Grid(image_size=(90, 120), resized_size=(84, 112), stride=14)
    entries = {"a": store.Entry(shape=(600, 800, 5), grid=grid)}
    record = {"fingerprint": "f" * 64, "stage": "extract", "settings": {}, "inputs": {}}
    with (
        pytest.raises(UserError, match=r"a\.h5: cannot be written: the disk is full"),
        store.create(tmp_path / "a.h5", record, entries, "float16"),
    ):
        pytest.fail("it was begun")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage(10_000_000))
    with store.create(tmp_path / "a.h5", record, entries, "float16") as writer:
        writer.add("a", np.zeros((600, 800, 5), "float16"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_whether_there_are_locks_is_found_out_without_a_trace(tmp_path, monkeypatch, number):
    assert files.has_locks(tmp_path)

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert not files.has_locks(tmp_path)
    assert not list(tmp_path.iterdir())
