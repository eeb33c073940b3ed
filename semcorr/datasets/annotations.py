"""File formats that several benchmarks share."""

import contextlib
import csv
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io

from semcorr.errors import UserError, reason

COMPRESSED = 15  # type of a variable in a .mat file
# The colon in the names of pairs: as is; as Windows' unpackers write it; as its Linux layers show it.
COLONS = (":", "_", "\uf03a")


@contextlib.contextmanager
def understood(path: Path, what: str) -> Iterator[None]:
    """Turn errors of the block about an annotation's values into a UserError that names the file.

    Raises:
        UserError: a key is missing, or a value has the wrong type.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        raise UserError(f"{path}: not {what} ({error})") from None


def code(value: object, most: int) -> int:
    """Return an annotation's code, which must be an integer from 0 to `most`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a code from 0 to {most}")
    return value


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Read variables of a .mat file, as floats.

    Raises:
        UserError: it is missing, damaged, in MATLAB 7.3 format (HDF5, which no benchmark here uses), or lacks a
            variable.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: the annotation is missing. Get the dataset again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        _verify_streams(content)
        values = scipy.io.loadmat(io.BytesIO(content), variable_names=names)
        arrays = {name: np.asarray(values[name]) for name in names if name in values}
        if any(np.iscomplexobj(array) for array in arrays.values()):
            raise ValueError("complex numbers")
        arrays = {name: array.astype(float) for name, array in arrays.items()}
    except MemoryError:
        raise
    except Exception as error:  # scipy raises many kinds for a damaged file, NotImplementedError for MATLAB 7.3
        raise UserError(f"{path}: not a readable .mat file ({reason(error)}). Get the dataset again") from None
    for name in names:
        if name not in arrays:
            raise UserError(f"{path}: holds no {name}")
    return [arrays[name] for name in names]


def _verify_streams(content: bytes) -> None:
    """Verify the checksums of a .mat file's compressed variables, which scipy ignores.

    Raises:
        zlib.error, struct.error: it is damaged.
    """
    if not content.startswith(b"MATLAB 5.0"):
        return
    order, at = "<" if content[126:128] == b"IM" else ">", 128
    while at < len(content):
        kind, size = struct.unpack(f"{order}II", content[at : at + 8])
        if kind == COMPRESSED:
            zlib.decompress(content[at + 8 : at + 8 + size])
        at += 8 + size


def read_list(path: Path) -> list[tuple[int, list[str]]]:
    """Read the rows of a list of pairs, a CSV file, each with its line number, without the header.

    A first row is a header if none of its cells is a number or an image's name.

    Raises:
        UserError: it is missing, not a CSV file, or empty.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise UserError(f"{path}: no such list of pairs") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if rows and not any(map(_is_data, rows[0][1])):
        del rows[0]
    if not rows:
        raise UserError(f"{path}: the list of pairs is empty")
    return rows


def _is_data(cell: str) -> bool:
    """Whether a cell of a list is a number or an image's name, so that its row is not a header."""
    if cell.strip().lower().endswith((".png", ".jpg", ".jpeg")):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
