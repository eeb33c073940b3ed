"""Annotation files that several benchmarks come in."""

import csv
from pathlib import Path

import numpy as np
import scipy.io

from semcorr.errors import UserError

# What stands for the colon in the names of pairs: itself; what Windows' unpackers write; what its Linux layers show.
COLONS = (":", "_", "\uf03a")


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a .mat file, as floats.

    Raises:
        UserError: it is missing, damaged, of MATLAB 7.3 (which is HDF5, and none of these benchmarks'), or holds no
            such variable.
    """
    if not path.exists():
        raise UserError(f"{path}: the annotation is missing. Get the dataset again")
    try:
        values = scipy.io.loadmat(path, variable_names=names)
        return [np.asarray(values[name], float) for name in names]
    except KeyError as error:
        raise UserError(f"{path}: holds no {error.args[0]}") from None
    except (OSError, ValueError, NotImplementedError, TypeError) as error:  # NotImplementedError: MATLAB 7.3
        raise UserError(f"{path}: not a readable .mat file ({error})") from None


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
