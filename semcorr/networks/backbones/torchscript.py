"""The tensors of a TorchScript archive, such as OpenAI's CLIP files, read as data: none of its code is loaded or run.

The archive is a zip file. Its `data.pkl` is a pickle of the module: nested objects whose attributes are tensors, other
modules and plain values; a tensor names the member that holds its bytes. Any other content is refused.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KINDS = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def is_archive(path: Path) -> bool:
    """Whether a zip file is a TorchScript archive: it holds constants beside its data."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def tensors(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of the archived module, by name.

    Raises:
        pickle.UnpicklingError: the archive asks for anything but tensors and modules.
        KeyError, ValueError, EOFError: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        [data] = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        content = archive.read(_stored(archive, data))
        for code, value, _ in pickletools.genops(content):  # also refuses lengths beyond the end
            if code.name == "LONG_BINPUT" and isinstance(value, int) and value > len(content):
                raise ValueError(f"its pickle asks for {value} places")
        module = _Unpickler(io.BytesIO(content), archive, data.removesuffix(".pkl")).load()
    found: dict[str, Tensor] = {}
    _collect(module, "", found, set())
    if (total := sum(tensor.nbytes for tensor in found.values())) > 2 * path.stat().st_size:
        raise ValueError(f"its tensors would take {total:,} bytes, more than the file has")
    return {name: tensor.clone() for name, tensor in found.items()}


def _stored(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A member, which must be stored as it is: a compressed one could be far larger than the file."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"member {name} is compressed")
    return member


class _Module:
    """An object of the archive: its attributes, without its class."""

    attributes: dict[str, Any]

    def __new__(cls) -> "_Module":
        """A pickle makes objects without __init__."""
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


def _collect(module: _Module, prefix: str, found: dict[str, Tensor], seen: set[int]) -> None:
    if id(module) in seen:
        raise ValueError(f"module {prefix} appears twice")
    seen.add(id(module))
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", found, seen)


class _Unpickler(pickle.Unpickler):
    """Reads modules and tensors, and nothing else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The few things that an archive may ask for."""
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in KINDS:
            return KINDS[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return known[module, name]

    def persistent_load(self, key: tuple) -> Tensor:
        """The flat values of a member of the archive."""
        _, kind, name, _, count = key
        if name not in self._storages:
            content = bytearray(self._archive.read(_stored(self._archive, f"{self._folder}/{name}")))
            if len(content) != count * kind.itemsize:
                raise ValueError(f"member {name} holds {len(content)} bytes, expected {count * kind.itemsize}")
            self._storages[name] = torch.frombuffer(content, dtype=kind) if count else torch.empty(0, dtype=kind)
        return self._storages[name]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    beyond = offset < 0 or min(stride, default=0) < 0 or last >= len(storage) or math.prod(size) > len(storage)
    if 0 not in size and beyond:
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage")
    return storage.as_strided(size, stride, offset)
