"""Checkpoint files of others, .pth or .safetensors: told apart by content, and read without running what is in them."""

import collections
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from semcorr.datasets.archive import verify_members
from semcorr.errors import UserError, reason

WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the tensors
DEEPEST = 5  # dictionaries in dictionaries that are looked into
LEGACY_PICKLES = 5  # magic number, version, machine, tensors, their keys; then come the tensors' bytes
POINTER = b"version https://git-lfs.github.com/spec"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        UserError: it is missing, damaged, something else, holds anything but tensors, or several sets of them.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (weights: kind file)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if head.startswith(POINTER):
        raise UserError(f"{path}: is a git-lfs pointer and not the file it stands for. Fetch that: git lfs pull")
    if head[8:9] != b"{" and head.lstrip().startswith(b"<"):
        raise UserError(f"{path}: is a web page, such as a login asks for, and no checkpoint. Download the file itself")
    try:
        if head[8:9] == b"{":  # a header's length, then the header, which is JSON
            return load_file(path)
        if zipfile.is_zipfile(path):
            verify_members(path)
        with path.open("rb") as file:  # by its path torch would go by its suffix
            values: Any = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # each kind of damage has its own errors
        asked = (
            re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
            if isinstance(error, pickle.UnpicklingError)
            else None
        )
        if asked and _is_whole(path):
            raise UserError(
                f"{path}: refused, since it holds more than tensors and could run code, or is damaged: it asks for "
                f"{asked[1]}. Get the official file, or a .safetensors one"
            ) from None
        raise UserError(f"{path}: not a readable checkpoint ({reason(error)}). Get it again") from None
    return _tensors(values, path)


def _is_whole(path: Path) -> bool:
    """Whether the pickles of a .pth file are there to their ends; they are read, and not run."""
    if zipfile.is_zipfile(path):
        return True  # its checksums were compared
    try:
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                collections.deque(pickletools.genops(file), maxlen=0)
    except Exception:  # whatever comes after the end, or in the place of an opcode
        return False
    return True


def _tensors(values: Any, path: Path, depth: int = 0) -> dict[str, Tensor]:
    """The one set of tensors in what a training script has saved."""
    if not isinstance(values, dict) or not values or depth > DEEPEST:
        raise UserError(f"{path}: holds a {type(values).__name__}, expected a dictionary of tensors")
    strangers = [name for name, value in values.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if not strangers:
        return values
    sets = [key for key, value in values.items() if _has_tensors(value)]
    if len(sets) > 1:
        raise UserError(
            f"{path}: holds several sets of tensors: {', '.join(map(str, sets))}. Save the one you mean by itself: "
            f"torch.save(torch.load('{path.name}', weights_only=True)['{sets[0]}'], 'one.pth')"
        )
    inner = sets or [key for key in WRAPPERS if isinstance(values.get(key), dict)]
    if inner:
        return _tensors(values[inner[0]], path, depth + 1)
    raise UserError(f"{path}: {strangers[0]} is a {type(values[strangers[0]]).__name__}, expected a tensor with a name")


def _has_tensors(values: Any) -> bool:
    return isinstance(values, dict) and any(isinstance(value, Tensor) for value in values.values())
