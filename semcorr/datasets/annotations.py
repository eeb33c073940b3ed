"""Annotation files that several benchmarks come in."""

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
# What stands for the colon in the names of pairs: itself; what Windows' unpackers write; what its Linux layers show.
COLONS = (":", "_", "\uf03a")


@contextlib.contextmanager
def understood(path: Path, what: str) -> Iterator[None]:
    """Read what an annotation file says; whatever is wrong with its values becomes an error that names it.

    Raises:
        UserError: a key is missing, or something else stands where a number, a text or a list should.
    """
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: key {error} is missing") from None
    except (TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        raise UserError(f"{path}: not {what} ({error})") from None


def code(value: object, most: int) -> int:
    """A code that an annotation gives: a whole number from 0 to `most`.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no code from 0 to {most}")
    return value


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a .mat file, as floats.

    Raises:
        UserError: it is missing, damaged, of MATLAB 7.3 (which is HDF5, and none of these benchmarks'), or holds no
            such variable.
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
        found = {name: np.asarray(values[name]) for name in names if name in values}
        if any(np.iscomplexobj(value) for value in found.values()):
            raise ValueError("complex numbers")
        found = {name: value.astype(float) for name, value in found.items()}
    except MemoryError:
        raise
    except Exception as error:  # scipy has many for a damaged file, and NotImplementedError for MATLAB 7.3
        raise UserError(f"{path}: not a readable .mat file ({reason(error)}). Get the dataset again") from None
    for name in names:
        if name not in found:
            raise UserError(f"{path}: holds no {name}")
    return [found[name] for name in names]


def _verify_streams(content: bytes) -> None:
    """Compare the checksums of a .mat file's compressed variables, which scipy reads past.

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
    """The rows of a list of pairs, a CSV file, each with its line number; a header, where there is one, is left out.

    A header is told by its content: none of its cells is a number or an image's name.

    Raises:
        UserError: it is missing, no CSV file, or empty.
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
    """Whether a cell of a list is a number or an image's name, and so in no header."""
    if cell.strip().lower().endswith((".png", ".jpg", ".jpeg")):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
