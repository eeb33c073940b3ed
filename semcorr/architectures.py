"""What params.yaml asks of a network, held against the network itself before anything runs.

Importing timm takes seconds, so what was found out about an architecture is remembered in `.semcorr/`, by its name,
overrides and the version of the library that builds it: with nothing new to find out, no network is built.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semcorr.errors import UserError
from semcorr.files import canonical_json, write_json
from semcorr.params import Backbone, Params

MEMORY = Path(".semcorr/architectures.json")
LIBRARY = {"timm": "timm", "sam": "segment-anything"}  # family -> the package that builds it


def check(params: Params) -> None:
    """Refuse models that do not exist, and what their networks do not have.

    Raises:
        UserError: each problem on a line of its own, with its key in params.yaml.
    """
    known, problems = _remembered(), []
    before = dict(known)
    for name, spec in params.backbones.items():
        try:
            facts = known.setdefault(_key(spec), None) or _find_out(spec)
        except UserError as error:
            problems.append(f"params.yaml: backbones.{name}: {str(error).removeprefix('params.yaml: ')}")
            del known[_key(spec)]
            continue
        known[_key(spec)] = facts
        problems += [f"params.yaml: backbones.{name}.{problem}" for problem in _problems(spec, facts)]
        if name in params.grid.backbones:
            problems += _lora_problems(name, facts, params)
    if known != before:
        write_json(MEMORY, known)
    if problems:
        raise UserError("\n".join(problems))


def _problems(spec: Backbone, facts: dict[str, Any]) -> list[str]:
    found = []
    for layer in spec.layers:
        if layer != "neck" and layer >= facts["depth"]:
            found.append(f"layer: {layer} does not exist; {spec.model} has blocks 0 to {facts['depth'] - 1}")
    if facts["side"] and spec.image_size > facts["side"]:
        found.append(f"image_size: {spec.image_size} is more than the network's canvas of {facts['side']} pixels")
    return found


def _lora_problems(name: str, facts: dict[str, Any], params: Params) -> list[str]:
    found = []
    for tuning in params.grid.tunings:
        lora = params.tunings[tuning].lora
        if lora is not None and not set(lora.targets) & set(facts["linear"]):
            asked, allowed = " or ".join(lora.targets), ", ".join(facts["linear"])
            found.append(f"params.yaml: tunings.{tuning}.lora.targets: {name} has no layer {asked}; allowed: {allowed}")
    return found


def _key(spec: Backbone) -> str:
    package = LIBRARY[spec.family]
    return canonical_json([spec.family, spec.model, spec.overrides, f"{package} {version(package)}"])


def _find_out(spec: Backbone) -> dict[str, Any]:
    """Depth, canvas and linear layers of a network, which is built without memory for its tensors."""
    import torch

    from semcorr.backbones import build

    at = "neck" if spec.layer == "neck" else 0
    with torch.device("meta"):
        network = build(spec.model_copy(update={"layer": at, "facet": "token"}))
    linear = {
        path.rpartition(".")[2]
        for path, part in network.net.blocks.named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    return {"depth": network.depth, "side": getattr(network, "side", None), "linear": sorted(linear)}


def _remembered() -> dict[str, Any]:
    try:
        values = json.loads(MEMORY.read_text(encoding="utf-8"))
        return {key: facts for key, facts in values.items() if {"depth", "side", "linear"} == facts.keys()}
    except (OSError, ValueError, AttributeError):  # not there, or damaged: found out anew
        return {}
