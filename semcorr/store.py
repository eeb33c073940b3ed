"""The feature store: one HDF5 file, one array per image, and the settings that made it.

Each dataset `<image id>` holds (h, w, C) features of the valid cells (or a trunk's activations, padding included),
uncompressed, since float16 features are noise to a compressor. The file's attributes hold its provenance, each
dataset's the geometry of its image. The same inputs give the same bytes.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from semcorr import provenance
from semcorr.errors import UserError
from semcorr.files import replacing
from semcorr.geometry import Grid

FORMAT = 1


class Writer:
    """Adds images to a store that is not complete yet."""

    def __init__(self, file: h5py.File):
        self._file = file

    def add(self, image_id: str, array: np.ndarray, grid: Grid) -> None:
        """Add one image's array, with the geometry that maps it to pixels."""
        dataset = self._file.create_dataset(image_id, data=array, track_times=False)
        dataset.attrs["image_size"] = np.array(grid.image_size, np.int32)
        dataset.attrs["resized_size"] = np.array(grid.resized_size, np.int32)
        dataset.attrs["stride"] = np.int32(grid.stride)


@contextlib.contextmanager
def create(path: Path, record: dict[str, Any]) -> Iterator[Writer]:
    """Write a store; it appears under its name when the block ends well."""
    with replacing(path) as partial, h5py.File(partial, "w", libver="latest") as file:
        file.attrs["format"] = FORMAT
        file.attrs[provenance.KEY] = provenance.dumps(record)
        yield Writer(file)


class Store:
    """A complete store, open for reading."""

    def __init__(self, path: Path, expect: str):
        """Open `path`, made under the fingerprint `expect`.

        Raises:
            UserError: it is missing, damaged, or was made under other parameters.
        """
        self.path = path
        self.provenance = provenance.expect(path, expect)
        self._file = h5py.File(path)
        if self._file.attrs["format"] != FORMAT:
            raise UserError(f"{path}: format {self._file.attrs['format']}, this version reads {FORMAT}. Extract again")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def array(self, image_id: str) -> np.ndarray:
        """The array of one image."""
        return self._dataset(image_id)[()]

    def grid(self, image_id: str) -> Grid:
        """The geometry of one image."""
        attributes = self._dataset(image_id).attrs
        return Grid(
            image_size=tuple(map(int, attributes["image_size"])),
            resized_size=tuple(map(int, attributes["resized_size"])),
            stride=int(attributes["stride"]),
        )

    def ids(self) -> list[str]:
        """Ids of all images, sorted."""
        found: list[str] = []
        self._file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return sorted(found)

    def _dataset(self, image_id: str) -> h5py.Dataset:
        try:
            return self._file[image_id]
        except KeyError:
            raise UserError(f"{self.path}: holds no image {image_id}. Make it again") from None
