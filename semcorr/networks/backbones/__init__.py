"""Networks behind one interface: one module per family, named after it, with a function `network`.

Modules are imported by name: timm alone takes seconds, and a new module re-runs nothing that does not use it.
"""

import contextlib
import hashlib
import importlib
import json
import math
import os
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from semcorr.artifacts import provenance
from semcorr.artifacts.files import locked, replacing
from semcorr.errors import UserError, reason
from semcorr.networks.backbones.base import Backbone, Blockwise
from semcorr.networks.upsampler import PREFIX, upsampler_of
from semcorr.params import BackboneSpec, is_import_path
from semcorr.tensors import require_finite

Network = TypeVar("Network", bound=Backbone)
LOCK = Path(".semcorr/weights.lock")
SHOWN = 4  # names of each kind in an error


def build(spec: BackboneSpec) -> Backbone:
    """The network of one entry of params.yaml's `backbones`, with the stride of its feature layers.

    Raises:
        UserError: there is no such network, or it lacks a layer.
    """
    return create(spec).at(spec)


def create(spec: BackboneSpec, seed: int = 0) -> Backbone:
    """The network of an entry, with the architecture's initial tensors; it does not depend on the feature layers.

    The caller's random state does not change.

    Raises:
        UserError: there is no such network.
    """
    module = "own" if is_import_path(spec.family) else spec.family
    family = importlib.import_module(f"semcorr.networks.backbones.{module}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Backbone = family.network(spec)
    return network.eval().requires_grad_(False)


def build_blockwise(spec: BackboneSpec) -> Blockwise:
    """Build a network whose last blocks are to be tuned.

    Raises:
        UserError: its blocks cannot be run one by one.
    """
    network = build(spec)
    if not isinstance(network, Blockwise):
        raise UserError(f"params.yaml: {spec.model} does not run block by block, so it cannot be tuned")
    return network


def load(network: Network, *files: Path) -> Network:
    """Load safetensors files into a network; later files override earlier ones, and every tensor must match.

    Raises:
        UserError: a tensor is missing, unexpected or of the wrong shape; the message lists them.
    """
    tensors = {name: tensor for file in files for name, tensor in read(file).items()}
    where = " and ".join(map(str, files))
    tensors = _attach(network, tensors, where)
    check(tensors, network, where)
    network.net.load_state_dict(tensors)
    return network


def _attach(network: Backbone, tensors: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Attach the head whose tensors are among those of a checkpoint, if any, and return the others.

    Raises:
        UserError: they are not the tensors of a head of this network.
    """
    own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    if own:
        require_finite({PREFIX + name: tensor for name, tensor in own.items()}, where)
        try:
            network.upsampler = upsampler_of(own)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{where}: not the tensors of a head ({reason(error)})") from None
        network.upsampler.to(network.device)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}


def overlay(network: Backbone, path: Path, base: str) -> dict[str, torch.Tensor]:
    """Load a checkpoint of the stage finetune into the network it was tuned from, and return its tensors.

    Args:
        network: with the tensors that the checkpoint was tuned from.
        path: best.safetensors.
        base: digest of the network's tensors.

    Raises:
        UserError: it is missing or damaged, was tuned from other tensors, or does not fit the network.
    """
    record = provenance.read(path).get("inputs", {}).get("tensors", {})
    if record.get("sha256") != base:
        raise UserError(f"{path}: was tuned from other tensors ({record.get('origin', 'it does not say which')})")
    tensors, own = read(path), network.net.state_dict()
    require_finite(tensors, str(path))
    of_network = _attach(network, tensors, str(path))
    for name, tensor in of_network.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f"{path}: {name} is not a tensor of this network")
    network.net.load_state_dict(own | of_network)
    return tensors


def require_tuned_for(spec: BackboneSpec, path: Path) -> None:
    """Refuse a checkpoint that was tuned for other features than those of an entry.

    Raises:
        UserError: the first key that differs.
    """
    settings = provenance.read(path).get("settings", {})
    tuned = {name.rpartition(".")[2]: value for name, value in settings.items()}
    for key in ("layer", "facet", "norm"):
        if tuned.get(key) != (value := spec.model_dump()[key]):
            raise UserError(f"{path}: was tuned for {key} {tuned.get(key)}, this backbone has {value}")


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file written by `save`; if its record has their digest, it is verified.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(provenance.KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        if record.get(provenance.TENSORS) not in (None, digest(tensors)):
            raise ValueError("their checksum is wrong")
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Run: dvc repro (or snakemake --cores all)") from None
    return tensors


def save(path: Path, tensors: dict[str, torch.Tensor], record: dict) -> None:
    """Write tensors as safetensors, with the provenance `record` and their digest; the output is deterministic."""
    _write(path, tensors, record | {provenance.TENSORS: digest(tensors)})


def _write(path: Path, tensors: dict[str, torch.Tensor], record: dict) -> None:
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata={provenance.KEY: provenance.dumps(provenance.sealed(record))})


def save_shared(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Write tensors without their provenance, and return their digest.

    If the same tensors are in a file of the same folder or one beside it, the file system keeps one copy of both (a
    hard link), unless it cannot.
    """
    key = digest(tensors)
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with locked(LOCK):  # of two jobs at once, the second finds the file of the first
        for other in sorted(path.parent.parent.glob("*/*.safetensors")):
            if other != path and _holds(other, key):
                with contextlib.suppress(OSError), replacing(path) as partial:
                    os.link(other, partial)
                    os.utime(partial)  # engines compare times, and this output is new
                    return key
        _write(path, tensors, {provenance.TENSORS: key})
    return key


def _holds(path: Path, key: str) -> bool:
    """Whether a file holds tensors of a digest, all whole, and nothing else."""
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(provenance.KEY, "{}"))
        return record == provenance.sealed({provenance.TENSORS: key}) and bool(read(path))  # which verifies them
    except (UserError, OSError, SafetensorError, ValueError):
        return False


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Hex SHA-256 of tensors: their names, types, shapes and values, independent of the file format."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


def check(tensors: dict[str, torch.Tensor], network: Backbone, where: str) -> None:
    """Raise UserError unless the tensors are exactly those of the network, and finite."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.net.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    unexpected = sorted(f"{name} {given[name]}" for name in given.keys() - wanted.keys())
    missing = sorted(f"{name} {wanted[name]}" for name in wanted.keys() - given.keys())
    # Both lists, so that the two naming schemes can be compared.
    problems = [f"unexpected {_some(unexpected)}"] if unexpected else []
    problems += [f"missing {_some(missing)}"] if missing else []
    problems += [
        f"{name} is {given[name]}, expected {wanted[name]}{_other_size(name, given[name], wanted[name], network)}"
        for name in sorted(wanted.keys() & given.keys())
        if wanted[name] != given[name]
    ][:SHOWN]
    counters = {name for name, tensor in network.net.state_dict().items() if not tensor.is_floating_point()}
    problems += [
        f"{name} is {tensor.dtype}"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() and name not in counters
    ]
    problems += [f"{name} is on {tensor.device}" for name, tensor in tensors.items() if tensor.is_meta]
    problems += [f"{name} is {tensor.layout}" for name, tensor in tensors.items() if tensor.layout != torch.strided]
    if problems:
        raise UserError(f"{where}: not the tensors of this network ({network.name}): {'; '.join(problems)}")
    require_finite({name: tensor.float() for name, tensor in tensors.items()}, where)


def _other_size(name: str, given: tuple, wanted: tuple, network: Backbone) -> str:
    """Which image size position embeddings (1, N, C) were made for, if that is all they differ in."""
    if name == "pos_embed" and len(given) == len(wanted) == 3 and given[2] == wanted[2]:
        for prefix in range(10):  # tokens that are not patches
            old, new = (math.isqrt(max(0, shape[1] - prefix)) for shape in (given, wanted))
            if old and (old * old + prefix, new * new + prefix) == (given[1], wanted[1]):
                side = old * network.strides[0]
                return f" (made for images of {side} pixels: overrides: {{img_size: {side}}})"
    return ""


def _some(names: list[str]) -> str:
    return "; ".join(names[:SHOWN]) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
