"""Arrays of a store on their way to the device: kept there, read ahead, or read when needed, they are the same."""

import threading

import numpy as np
import pytest
import torch

from semcorr.artifacts import store
from semcorr.geometry import Grid
from semcorr.networks.feed import Feed

CPU = torch.device("cpu")
GRID = Grid(image_size=(28, 42), resized_size=(28, 42), stride=14)


@pytest.fixture
def stored(tmp_path):
    """A store of ten arrays, and them."""
    rng = np.random.default_rng(0)
    arrays = {str(number): rng.standard_normal((2, 3, 5)).astype(np.float16) for number in range(10)}
    entries = {name: store.Entry(shape=(2, 3, 5), grid=GRID) for name in arrays}
    record = {"stage": "trunk", "fingerprint": "f", "settings": {}, "inputs": {}}
    with store.create(tmp_path / "x.h5", record, entries, "float16") as writer:
        for name, array in arrays.items():
            writer.add(name, array)
    with store.Store(tmp_path / "x.h5", "f") as opened:
        yield opened, arrays


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_batches_are_those_of_the_store(stored, room):
    opened, arrays = stored
    feed = Feed(opened, CPU, room)
    for names in (["3", "1"], ["1"], ["9", "3", "0"], ["3", "1"]):
        feed.ahead(names)
        found = feed.stacked(names)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found, np.stack([arrays[name] for name in names]))


def test_what_fits_is_read_once(stored, monkeypatch):
    opened, _ = stored
    read: list[str] = []
    array = opened.array
    monkeypatch.setattr(opened, "array", lambda name: read.append(name) or array(name))
    size = opened.path.stat().st_size
    for room, times in ((size, 1), (size - 1, 3)):
        feed = Feed(opened, CPU, room)
        for _ in range(3):
            feed.stacked(["2", "5"])
        assert read.count("2") == read.count("5") == times
        read.clear()


def test_the_next_batch_is_read_meanwhile(stored, monkeypatch):
    """On another thread, once; a batch that nobody announced is read at once."""
    opened, _ = stored
    threads: list[str] = []
    array = opened.array
    monkeypatch.setattr(opened, "array", lambda name: threads.append(threading.current_thread().name) or array(name))
    feed = Feed(opened, torch.device("meta"), room=0)  # any device but the CPU: what arrives there has a shape alone
    feed.ahead(["4", "7"])
    assert feed.stacked(["4", "7"]).shape == (2, 2, 3, 5)
    assert len(threads) == 2
    assert threading.main_thread().name not in threads
    feed.stacked(["4", "7"])
    assert threads[2:] == [threading.main_thread().name] * 2


def test_a_damaged_array_that_was_read_ahead_is_told(tmp_path, stored):
    """When it is needed, and not lost in the thread."""
    opened, _ = stored
    content = bytearray((tmp_path / "x.h5").read_bytes())
    at = content.find(opened.array("4").tobytes())
    (tmp_path / "x.h5").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with store.Store(tmp_path / "x.h5", "f") as damaged:
        feed = Feed(damaged, torch.device("meta"), room=0)
        feed.ahead(["4"])
        with pytest.raises(store.UserError, match="the checksum of 4 is wrong"):
            feed.stacked(["4"])
