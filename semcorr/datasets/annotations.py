"""Annotation files that several benchmarks come in."""

import csv
from pathlib import Path

import numpy as np
import scipy.io

from semcorr.errors import UserError


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


def read_list(path: Path) -> list[list[str]]:
    """The rows of a list of pairs, a CSV file, below its head.

    Raises:
        UserError: it is missing, no CSV file, or empty.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
    except FileNotFoundError:
        raise UserError(f"{path}: no such list of pairs") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if not rows:
        raise UserError(f"{path}: the list of pairs is empty")
    return rows
