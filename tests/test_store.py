"""The feature store: what goes in comes out, the same bytes each time, and nothing is taken for what it is not."""

import numpy as np
import pytest

from semcorr import provenance, store
from semcorr.errors import UserError
from semcorr.files import replacing
from semcorr.geometry import Grid

GRID = Grid(image_size=(90, 120), resized_size=(84, 112), stride=14)


def _write(path, fingerprint="f" * 64, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=(6, 8, 5)).astype("float16") for name in ("cat/b", "cat/a", "dog(S)/c 1")}
    with store.create(path, {"fingerprint": fingerprint, "stage": "extract"}) as writer:
        for name, array in arrays.items():
            writer.add(name, array, GRID)
    return arrays


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


def _fail_midway(path):
    with store.create(path, {"fingerprint": ""}) as writer:
        writer.add("x", np.zeros((1, 1, 1)), GRID)
        raise RuntimeError("midway")


def test_a_failed_write_leaves_nothing_new(tmp_path):
    _write(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(RuntimeError, match="midway"):
        _fail_midway(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


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
