"""The feature store: what goes in comes out, the same bytes each time, and nothing is taken for what it is not."""

import os
import re
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semcorr import cli
from semcorr.artifacts import provenance, store
from semcorr.artifacts.files import replacing
from semcorr.errors import UserError
from semcorr.geometry import Grid

GRID = Grid(image_size=(90, 120), resized_size=(84, 112), stride=14)


NAMES = ("cat/b", "cat/a", "dog(S)/c 1")
ENTRIES = {name: store.Entry(shape=(6, 8, 5), grid=GRID) for name in NAMES}


def _write(path, fingerprint="f" * 64, seed=0, order=NAMES, entries=ENTRIES, version="1"):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=(6, 8, 5)).astype("float16") for name in NAMES}
    record = {"fingerprint": fingerprint, "stage": "extract", "settings": {"threads": 1}, "inputs": {}}
    with store.create(path, record, entries, "float16", version) as writer:
        for name in order:
            if name not in writer.done:
                writer.add(name, arrays[name])
    return arrays


def _visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_round_trip(tmp_path):
    arrays = _write(tmp_path / "a.h5")
    with store.Store(tmp_path / "a.h5", expect="f" * 64) as opened:
        assert opened.ids() == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened.array(name), array)
            assert opened.array(name).dtype == np.float16
            assert opened.grid(name) == GRID


def test_same_inputs_same_bytes(tmp_path):
    _write(tmp_path / "a.h5")
    _write(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_made_otherwise_is_refused(tmp_path):
    _write(tmp_path / "a.h5", fingerprint="a" * 64)
    with pytest.raises(UserError, match=r"a\.h5: made under other parameters"):
        store.Store(tmp_path / "a.h5", expect="b" * 64)


def test_missing_and_truncated_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.h5: no such file"):
        store.Store(tmp_path / "none.h5", expect="f" * 64)
    _write(tmp_path / "a.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cut\.h5: not a complete file"):
        store.Store(tmp_path / "cut.h5", expect="f" * 64)


def test_a_missing_image_is_named(tmp_path):
    _write(tmp_path / "a.h5")
    with (
        store.Store(tmp_path / "a.h5", expect="f" * 64) as opened,
        pytest.raises(UserError, match="no image cat/z"),
    ):
        opened.array("cat/z")


def test_the_order_of_the_images_leaves_no_trace(tmp_path):
    _write(tmp_path / "a.h5")
    _write(tmp_path / "b.h5", order=NAMES[::-1])
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_store_is_a_plain_hdf5_file(tmp_path):
    """Anyone's h5py reads it, names, shapes, attributes and all."""
    arrays = _write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)
            assert file[name].attrs["resized_size"].tolist() == [84, 112]
        np.testing.assert_array_equal(file[".crc32"], [zlib.crc32(arrays[name]) for name in sorted(NAMES)])


def _fail_after(path, count, **changes):
    with pytest.raises(AssertionError, match="an image was not written"):
        _write(path, order=NAMES[:count], **changes)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_store_is_resumed(tmp_path, count):
    """What was written before the end is not asked for again, and the end is the same."""
    _write(tmp_path / "whole.h5")
    _fail_after(tmp_path / "a.h5", count)
    assert _visible(tmp_path) == ["whole.h5"]
    _write(tmp_path / "a.h5", order=NAMES[count:])
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("change", [{"fingerprint": "0" * 64}, {"version": "2"}])
def test_what_was_begun_otherwise_is_not_resumed(tmp_path, change):
    """Other values than what is there, so that a mixture would differ."""
    _write(tmp_path / "whole.h5", seed=1, **change)
    _fail_after(tmp_path / "a.h5", 2)
    _write(tmp_path / "a.h5", seed=1, **change)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_journal_line_that_was_being_written_does_not_count(tmp_path):
    _write(tmp_path / "whole.h5")
    _fail_after(tmp_path / "a.h5", 2)
    journal = tmp_path / ".a.h5.done"
    journal.write_text(journal.read_text().removesuffix("\n"))
    _write(tmp_path / "a.h5", order=NAMES[1:])
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    _write(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    _fail_after(tmp_path / "a.h5", 1, fingerprint="0" * 64)
    assert (tmp_path / "a.h5").read_bytes() == before
    assert _visible(tmp_path) == ["a.h5"]


def test_two_writers_of_one_store(tmp_path):
    record = {"fingerprint": "f"}
    with (
        store.create(tmp_path / "a.h5", record, {}, "float16"),
        pytest.raises(UserError, match=r"a\.h5: another process is writing it"),
    ):
        _write(tmp_path / "a.h5")


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_noticed(tmp_path, data):
    """Anywhere in the arrays, when the array is read."""
    path = tmp_path / "a.h5"
    arrays = _write(path)
    content = bytearray(path.read_bytes())
    name = data.draw(st.sampled_from(NAMES))
    start = bytes(content).find(arrays[name].tobytes())
    content[start + data.draw(st.integers(0, arrays[name].nbytes - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with (
        store.Store(path, "f" * 64) as opened,
        pytest.raises(UserError, match=f"damaged: the checksum of {re.escape(name)}"),
    ):
        opened.array(name)
    with pytest.raises(UserError, match="damaged"):
        store.describe(path)


def test_a_store_cut_while_it_is_read(tmp_path):
    """An array that was read whole before is not taken for whole again."""
    path = tmp_path / "a.h5"
    arrays = _write(path)
    with store.Store(path, "f" * 64) as opened:
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened.array(name), array)
        os.truncate(path, 100)
        with pytest.raises(UserError, match="damaged"):
            opened.array("cat/a")


def test_a_store_describes_itself(tmp_path, capsys):
    _write(tmp_path / "a.h5")
    cli.main(["store", str(tmp_path / "a.h5")])
    printed = capsys.readouterr().out
    for line in ("arrays: 3, float16", "cells: 6 x 8", "channels: 5; stride: 14", "threads: 1", "f" * 64):
        assert line in printed
    with pytest.raises(SystemExit):
        cli.main(["store", str(tmp_path / "none.h5")])
    assert "no such file" in capsys.readouterr().err


READ = (
    "import sys; from semcorr.artifacts.store import Store; s = Store(__import__('pathlib').Path(sys.argv[1]), None); "
)
READ += "print(sum(float(s.array(name).sum()) for name in s.ids()))"


def test_several_processes_read_one_store(tmp_path):
    arrays = _write(tmp_path / "a.h5")
    command = [sys.executable, "-c", READ, str(tmp_path / "a.h5")]
    with store.Store(tmp_path / "a.h5", "f" * 64):
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        sums = [float(reader.communicate()[0]) for reader in readers]
    assert sums == [sum(float(arrays[name].sum()) for name in sorted(arrays))] * 4


def _write_folder(path, content, fail=False):
    with replacing(path) as partial:
        partial.mkdir()
        (partial / "file").write_text(content)
        if fail:
            raise RuntimeError("midway")


def test_replacing_a_folder(tmp_path):
    for content in ("old", "new"):
        _write_folder(tmp_path / "folder", content)
    assert (tmp_path / "folder" / "file").read_text() == "new"
    with pytest.raises(RuntimeError, match="midway"):
        _write_folder(tmp_path / "folder", "newer", fail=True)
    assert (tmp_path / "folder" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("suffix", [".h5", ".parquet", ".json", ".safetensors", ".html"])
def test_garbage_is_no_output_of_ours(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"garbage" * 50)
    with pytest.raises(UserError, match="not a complete file of semcorr"):
        provenance.read(path)
