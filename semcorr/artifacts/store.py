"""The feature store: one HDF5 file with one array per image, and its provenance.

Each dataset `<image id>` holds (h, w, C) features of the valid cells (or a trunk's activations, padding included),
uncompressed, since float16 features hardly compress. The file's attributes hold its provenance, each dataset's the
geometry of its image; the dataset `.crc32` holds a checksum of each array, in the order of the ids.

The whole file is allocated before the first image is encoded, so its bytes do not depend on the order of the images,
and a full disk is noticed at once. Each array is then written in place and logged in a journal next to the file, so a
killed run resumes after the last one. The file is renamed once complete, so a file that exists is complete.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import Timeout

from semcorr.artifacts import provenance
from semcorr.artifacts.files import canonical_json, locked, sha256, unwritable
from semcorr.errors import UserError, reason
from semcorr.geometry import Grid

FORMAT = 3
CHECKSUMS = ".crc32"
FEATURES = ("extract", "adapt", "fuse")  # the stages whose stores hold the valid cells of images


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Shape and geometry of an image's array, known before it is computed."""

    shape: tuple[int, ...]
    grid: Grid


class Writer:
    """Writes arrays into a store that is not yet complete.

    Attributes:
        done: ids of the images already written.
    """

    def __init__(self, partial: Path, journal: Path, entries: dict[str, Entry], dtype: np.dtype):
        self.done = set(_finished(journal)[1:])
        self._entries, self._dtype = entries, dtype
        self._order = {image_id: index for index, image_id in enumerate(sorted(entries))}
        with h5py.File(partial, "r", locking=False) as file:
            self._offsets = {image_id: file[image_id].id.get_offset() for image_id in entries}
            self._checksums = file[CHECKSUMS].id.get_offset()
        self._file = os.open(partial, os.O_WRONLY)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND)

    def add(self, image_id: str, array: np.ndarray) -> None:
        """Write one image's array."""
        entry = self._entries[image_id]
        assert array.shape == entry.shape, f"{image_id}: {array.shape}, expected {entry.shape}"
        assert array.dtype == self._dtype, f"{image_id}: {array.dtype}, expected {self._dtype}"
        content = np.ascontiguousarray(array)
        _write(self._file, memoryview(content).cast("B"), self._offsets[image_id])
        place = self._checksums + 4 * self._order[image_id]
        _write(self._file, zlib.crc32(content).to_bytes(4, "little"), place)
        os.write(self._journal, f"{image_id}\n".encode())
        self.done.add(image_id)

    def close(self) -> None:
        """Close the files."""
        os.close(self._file)
        os.close(self._journal)


@contextlib.contextmanager
def create(
    path: Path, record: dict[str, Any], entries: dict[str, Entry], dtype: str, resume_key: Any = None
) -> Iterator[Writer]:
    """Write a store; it is renamed to `path` when the block succeeds and every image has been written.

    A block that failed or was killed is resumed by the next call with the same arguments.

    Args:
        path: the store.
        record: its provenance.
        entries: image id -> shape and geometry, of all images.
        dtype: "float16" or "float32".
        resume_key: the code and inputs of the arrays, as JSON; an unfinished store of different ones is discarded.

    Raises:
        UserError: the disk is full, or another process is writing the same store.
    """
    partial, journal, lock = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "done", "lock"))
    shapes = {name: asdict(entry) for name, entry in entries.items()}
    key = hashlib.sha256(canonical_json([FORMAT, resume_key, record, dtype, shapes]).encode()).hexdigest()
    with unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(lock, timeout=0):
                if not partial.exists() or _finished(journal)[:1] != [key]:
                    journal.unlink(missing_ok=True)
                    _lay_out(partial, record, entries, np.dtype(dtype))
                    journal.write_text(f"{key}\n")
                writer = Writer(partial, journal, entries, np.dtype(dtype))
                try:
                    yield writer
                finally:
                    writer.close()
                assert writer.done == entries.keys(), "an image was not written"
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
                journal.unlink()
        except Timeout:
            raise UserError(f"{path}: another process is writing it. Wait for it, or stop it") from None


def _lay_out(path: Path, record: dict[str, Any], entries: dict[str, Entry], dtype: np.dtype) -> None:
    """Write everything but the arrays, and allocate space for them."""
    path.unlink(missing_ok=True)
    try:
        with h5py.File(path, "w", libver="latest", locking=False) as file:
            file.attrs["format"] = FORMAT
            file.attrs[provenance.KEY] = provenance.dumps(record)
            for image_id, entry in sorted(entries.items()):
                dataset = _room(file, image_id, entry.shape, dtype)
                dataset.attrs["image_size"] = np.array(entry.grid.image_size, np.int32)
                dataset.attrs["resized_size"] = np.array(entry.grid.resized_size, np.int32)
                dataset.attrs["stride"] = np.int32(entry.grid.stride)
                dataset.attrs["upsample"] = np.int32(entry.grid.upsample)
            _room(file, CHECKSUMS, (len(entries),), np.dtype("<u4"))
        _allocate(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _allocate(path: Path) -> None:
    """Reserve disk space for a whole file; on a system that cannot, such as macOS, see whether there is enough.

    Raises:
        OSError: the disk is too small.
    """
    size = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(path.parent).free < size - 512 * path.stat().st_blocks:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _room(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> h5py.Dataset:
    """Create a dataset with space allocated in the file; its content is written later."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    links.set_char_encoding(h5py.h5t.CSET_UTF8)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation, lcpl=links))


def _finished(journal: Path) -> list[str]:
    """The complete lines of a journal: its key, then ids; a partly written last line is ignored."""
    if not journal.exists():
        return []
    return journal.read_text(encoding="utf-8").split("\n")[:-1]


def _write(file: int, content: bytes | memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


class Store:
    """A complete store, open for reading by any number of processes and threads."""

    def __init__(self, path: Path, expect: str | None):
        """Open `path`, which must carry the fingerprint `expect`; None accepts any.

        Raises:
            UserError: it is missing, damaged, or was made with other parameters.
        """
        self.path = path
        self.provenance = provenance.read(path) if expect is None else provenance.expect(path, expect)
        self._places: dict[str, tuple[int, np.dtype]] = {}
        self._entries: dict[str, Entry] = {}
        try:
            with h5py.File(path, "r", locking=False) as file:
                version = file.attrs["format"]
                if version == FORMAT:
                    file.visititems(self._look)
                    self._checksums = dict(zip(self.ids(), file[CHECKSUMS][()].tolist(), strict=True))
        except Exception as error:  # h5py raises many kinds for a damaged file
            raise _damaged(path, error) from None
        if version != FORMAT:
            raise UserError(f"{path}: format {version!r}, this version reads {FORMAT}. Delete it")
        self._verified: set[str] = set()
        self._file = path.open("rb")

    def _look(self, name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group) or name == CHECKSUMS:
            return
        sizes = [(int(height), int(width)) for height, width in map(item.attrs.get, ("image_size", "resized_size"))]
        stride, upsample = (_whole(item.attrs[name], name) for name in ("stride", "upsample"))
        grid = Grid(image_size=sizes[0], resized_size=sizes[1], stride=stride, upsample=upsample)
        if min(*sizes[0], *sizes[1]) < 1:
            raise ValueError(f"{name}: an image of {sizes}")
        if self.provenance.get("stage") in FEATURES and item.shape[:2] != grid.shape:
            raise ValueError(f"{name}: {item.shape[:2]} cells, where its geometry has {grid.shape}")
        self._entries[name] = Entry(shape=item.shape, grid=grid)
        self._places[name] = item.id.get_offset(), item.dtype

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def array(self, image_id: str) -> np.ndarray:
        """The array of one image.

        Raises:
            UserError: the image is not in the store, or its array is damaged.
        """
        shape = self._entry(image_id).shape
        offset, dtype = self._places[image_id]
        # Read directly: h5py would leave a small allocation per image between the arrays, which fragments the heap
        # and multiplies its size.
        array = np.empty(shape, dtype)
        count = os.preadv(self._file.fileno(), [array.reshape(-1).view(np.uint8)], offset) if array.size else 0
        whole = count == array.nbytes
        if not whole or (image_id not in self._verified and zlib.crc32(array) != self._checksums[image_id]):
            raise UserError(f"{self.path}: damaged: the checksum of {image_id} is wrong. Delete it and run again")
        self._verified.add(image_id)
        return array

    def grid(self, image_id: str) -> Grid:
        """The geometry of one image."""
        return self._entry(image_id).grid

    def ids(self) -> list[str]:
        """Ids of all images, sorted."""
        return sorted(self._entries)

    def entries(self) -> dict[str, Entry]:
        """Shape and geometry of every image."""
        return self._entries

    def _entry(self, image_id: str) -> Entry:
        try:
            return self._entries[image_id]
        except KeyError:
            raise UserError(f"{self.path}: holds no image {image_id}. Make it again") from None


def _whole(value: Any, name: str) -> int:
    """A whole number of at least 1."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} {value!r}")
    return int(value)


def content(path: Path) -> str:
    """Hash of a file's bytes; of a store, which may be large, hash of its arrays' checksums."""
    if path.suffix != ".h5":
        return sha256(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            return hashlib.sha256(file[CHECKSUMS][()].tobytes()).hexdigest()
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged ({reason(error)}). Delete it and run again")


def describe(path: Path) -> list[str]:
    """Readable lines about a store; every array's checksum is verified.

    Raises:
        UserError: it is not a complete store, or damaged.
    """
    if path.exists() and not (path.is_file() and h5py.is_hdf5(path)):
        raise UserError(f"{path}: not a feature store (features/<backbone>/<weights>/<dataset>.h5)")
    with Store(path, None) as store:
        record, entries = store.provenance, store.entries()
        types = sorted({str(store.array(image_id).dtype) for image_id in entries})
        channels = sorted({entry.shape[-1] for entry in entries.values()})
        strides = sorted({f"{entry.grid.pitch:g}" for entry in entries.values()})
        shapes = sorted({entry.shape[:-1] for entry in entries.values()})
    shown = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:6])
    tensors = record.get("inputs", {}).get("tensors") or record.get("inputs", {}).get("frozen") or {}
    return [
        f"{path}: {record['stage']}, {path.stat().st_size / 1e6:,.1f} MB, all checksums right",
        f"arrays: {len(entries):,}, {', '.join(types)}",
        f"cells: {shown}{f' and {len(shapes) - 6} more shapes' if len(shapes) > 6 else ''}",
        f"channels: {', '.join(map(str, channels))}; stride: {', '.join(strides)}",
        f"tensors: {tensors.get('origin', 'unknown')}",
        f"fingerprint: {record['fingerprint']}",
        *(f"{key}: {value}" for key, value in record["settings"].items()),
    ]
