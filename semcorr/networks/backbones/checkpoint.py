"""Third-party checkpoint files, .pth or .safetensors: told apart by content, and read without running their code."""

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
from semcorr.networks.backbones import torchscript

WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the tensors
DEEPEST = 5  # nested dictionaries to search
LEGACY_PICKLES = 5  # magic number, version, machine, tensors, their keys; the tensors' bytes follow
POINTER = b"version https://git-lfs.github.com/spec"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        UserError: it is missing, damaged, not a checkpoint, or holds anything but one set of tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (weights: kind file)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if head.startswith(POINTER):
        raise UserError(f"{path}: is only a git-lfs pointer. Fetch the file itself: git lfs pull")
    if head[8:9] != b"{" and head.lstrip().startswith(b"<"):
        raise UserError(f"{path}: is a web page, such as a login form, not a checkpoint. Download the file itself")
    try:
        if head[8:9] == b"{":  # safetensors: the header's length, then its JSON
            return load_file(path)
        if zipfile.is_zipfile(path):
            verify_members(path)
            if torchscript.is_archive(path):
                return torchscript.tensors(path)
        with path.open("rb") as file:  # given a path, torch would decide by its suffix
            values: Any = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise UserError(f"{path}: needs more memory than there is, or is damaged") from None
    except Exception as error:  # each kind of damage has its own errors
        name = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if name and isinstance(error, pickle.UnpicklingError) and _is_whole(path):
            raise UserError(
                f"{path}: refused, since it holds more than tensors and could run code, or is damaged: it asks for "
                f"{name[1]}. Get the official file, or a .safetensors one"
            ) from None
        raise UserError(f"{path}: not a readable checkpoint ({reason(error)}). Download it again") from None
    return _tensors(values, path)


def _is_whole(path: Path) -> bool:
    """Whether the pickles of a .pth file are complete; they are parsed, not run."""
    if zipfile.is_zipfile(path):
        return True  # its checksums were verified
    try:
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                collections.deque(pickletools.genops(file), maxlen=0)
    except Exception:  # a truncated file, or an invalid opcode
        return False
    return True


def _tensors(values: Any, path: Path, depth: int = 0) -> dict[str, Tensor]:
    """The one set of tensors in what a training script saved."""
    if not isinstance(values, dict) or not values or depth > DEEPEST:
        raise UserError(f"{path}: holds a {type(values).__name__}, expected a dictionary of tensors")
    extra = [name for name, value in values.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if not extra:
        return values
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    sets = [key for key, inner in nested.items() if any(isinstance(value, Tensor) for value in inner.values())]
    if len(sets) > 1:
        raise UserError(
            f"{path}: holds several sets of tensors: {', '.join(map(str, sets))}. Save the one you want alone: "
            f"torch.save(torch.load('{path.name}', weights_only=True)['{sets[0]}'], 'one.pth')"
        )
    if keys := sets or [key for key in WRAPPERS if key in nested]:
        return _tensors(nested[keys[0]], path, depth + 1)
    raise UserError(f"{path}: {extra[0]} is a {type(values[extra[0]]).__name__}, expected a tensor with a name")
