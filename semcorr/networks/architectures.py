"""Check params.yaml against the networks themselves before anything runs.

Importing timm takes seconds, so facts about an architecture are cached in `.semcorr/` by its name, overrides and the
version of its library; without new ones, no network is built.
"""

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import canonical_json, write_json
from semcorr.errors import UserError
from semcorr.params import BackboneSpec, FileWeights, Params, UrlWeights, is_import_path

MEMORY = Path(".semcorr/architectures.json")
FACTS = {"strides", "widths", "side", "linear", "neck", "norms", "facets", "positional", "blockwise", "prepared"}
logger = logging.getLogger(__name__)
LIBRARY = {"timm": "timm", "sam": "segment-anything"}  # family -> the package that builds it


def check(params: Params) -> None:
    """Check that all models exist and have what params.yaml asks of them.

    Raises:
        UserError: one line per problem, with its key in params.yaml.
    """
    known, problems = _remembered(), []
    before = dict(known)
    for name, spec in params.backbones.items():
        try:
            if is_import_path(spec.family):  # whose code may change at any time
                facts = facts_of(spec)
            else:
                key = _key(spec)
                facts = known[key] = known.get(key) or facts_of(spec)
        except UserError as error:
            problems.append(f"params.yaml: backbones.{name}: {str(error).removeprefix('params.yaml: ')}")
            continue
        problems += [f"params.yaml: backbones.{name}.{problem}" for problem in _problems(spec, facts)]
        problems += _layers_problems(name, spec, facts, params)
        if name in params.grid.backbones:
            problems += _tuning_problems(name, spec, facts, params)
            if facts["prepared"] and isinstance(spec.weights, FileWeights | UrlWeights):
                logger.warning("backbones.%s.weights.tag: is not given, so %s", name, facts["prepared"])
    if known != before:
        write_json(MEMORY, known)
    if problems:
        raise UserError("\n".join(problems))


def _problems(spec: BackboneSpec, facts: dict[str, Any]) -> list[str]:
    """What a network cannot do of what its entry asks, each with its key."""
    problems, depth = [], len(facts["widths"])
    numbers = [layer for layer in spec.layers if layer != "neck"]
    kind = "blocks" if len(set(facts["widths"])) == 1 else "stages"
    if missing := [layer for layer in numbers if layer >= depth]:
        return [f"layer: {missing[-1]} does not exist; {spec.model} has {kind} 0 to {depth - 1}"]
    strides = [facts["strides"][layer] for layer in numbers]
    if len(set(strides)) > 1:
        listed = ", ".join(f"{layer} has {stride}" for layer, stride in zip(numbers, strides, strict=True))
        problems.append(f"layer: {spec.layers} have different strides ({listed} pixels); allowed: layers of one stride")
    if spec.norm and not facts["norms"]:
        problems.append(f"norm: {spec.model} has no final norm before its pooling; allowed: false")
    elif spec.norm and not set(numbers) <= set(facts["norms"]):
        last = f"{spec.model}'s final norm belongs to its last stage, {depth - 1}"
        problems.append(f"norm: {last}; allowed with layer {spec.layer}: false")
    if spec.facet not in facts["facets"]:
        problems.append(
            f"facet: {spec.facet} cannot be read from {spec.model}, whose layers are not attention over all cells; "
            f"allowed: token"
        )
    if spec.debias is not None and not facts["positional"]:
        problems.append(f"debias: {spec.model} has no position embedding, whose part could be removed; allowed: null")
    channels = sum(facts["neck"] if layer == "neck" else facts["widths"][layer] for layer in spec.layers)
    if spec.debias is not None and spec.debias.components >= channels:
        problems.append(f"debias.components: {spec.debias.components} would leave nothing of {channels} channels")
    if facts["side"] and max(spec.sizes) > facts["side"]:
        more = "; another size: overrides: {img_size: ...}" if spec.family == "timm" else ""
        key = "image_size" if spec.image_size > facts["side"] else "views"
        problems.append(f"{key}: {max(spec.sizes)} is more than the network's canvas of {facts['side']} pixels{more}")
    return problems


def _layers_problems(name: str, spec: BackboneSpec, facts: dict[str, Any], params: Params) -> list[str]:
    """What cannot be measured at every layer."""
    layers = params.grid.layers
    problems: list[str] = []
    if name not in layers.backbones:
        return problems
    if missing := [facet for facet in layers.facets if facet not in facts["facets"]]:
        allowed = ", ".join(facts["facets"])
        lacking = f"{missing[0]} cannot be read from {name} ({spec.model})"
        problems.append(f"params.yaml: grid.layers.facets: {lacking}; allowed with it: {allowed}")
    if spec.debias is not None and spec.debias.components >= min(facts["widths"]):
        fewest = f"a layer of {name} that has {min(facts['widths'])} channels"
        problems.append(f"params.yaml: grid.layers.backbones: debias.components would leave nothing of {fewest}")
    return problems


def _tuning_problems(name: str, spec: BackboneSpec, facts: dict[str, Any], params: Params) -> list[str]:
    if params.grid.tunings and not facts["blockwise"]:
        return [
            f"params.yaml: grid.backbones: {name} cannot be tuned: {spec.model} does not run block by block on images "
            f"of any size, as plain vision transformers (DINOv2, DINOv3, CLIP, MAE, ...) and SAM do. Its frozen "
            f"features need grid.tunings: [], then semcorr fix; or take it out of grid.backbones"
        ]
    return _lora_problems(name, facts, params)


def _lora_problems(name: str, facts: dict[str, Any], params: Params) -> list[str]:
    problems = []
    for tuning in params.grid.tunings:
        lora = params.tunings[tuning].lora
        if lora is not None and not set(lora.targets) & set(facts["linear"]):
            layers = f"{name} has no layer {' or '.join(lora.targets)}; allowed: {', '.join(facts['linear'])}"
            problems.append(f"params.yaml: tunings.{tuning}.lora.targets: {layers}")
    return problems


def _key(spec: BackboneSpec) -> str:
    package = LIBRARY[spec.family]
    values = [spec.family, spec.model, spec.overrides, getattr(spec.weights, "tag", None)]
    return canonical_json([*values, f"{package} {version(package)}"])


def facts_of(spec: BackboneSpec) -> dict[str, Any]:
    """What a network can do; it is built and run on torch's meta device, without real tensors.

    Raises:
        UserError: there is no such network, or it cannot compute features.
    """
    import torch

    from semcorr.networks.backbones import build
    from semcorr.networks.backbones.base import Blockwise

    first = spec.model_copy(update={"layer": 0, "facet": "token", "norm": False, "debias": None})
    with torch.device("meta"), torch.inference_mode():
        network = build(first)
        image = torch.zeros(1, 3, *network.canvas((network.stride, 2 * network.stride)))
        for facet in network.facets:
            at = first.model_copy(update={"facet": facet})
            try:
                shape = network.features(image, at).shape
                assert shape[2:] == network.cells(image), f"shape {tuple(shape)}"
            except Exception as error:  # overrides or a facet that the network does not support
                setting, why = f"overrides {spec.overrides}, facet {facet}", f"{type(error).__name__}: {error}"
                raise UserError(f"{spec.model} gives no features with {setting} ({why})") from None
    layers = network.net.blocks.named_modules() if isinstance(network, Blockwise) else []
    return {
        "strides": network.strides,
        "widths": network.widths,
        "side": network.side,
        "linear": sorted({path.rpartition(".")[2] for path, part in layers if isinstance(part, torch.nn.Linear)}),
        "neck": network.neck_width,
        "norms": list(network.norms),
        "facets": list(network.facets),
        "positional": network.positional,
        "blockwise": isinstance(network, Blockwise),
        "prepared": _prepared(spec),
    }


def _prepared(spec: BackboneSpec) -> str | None:
    """How images are prepared without a tag, where a model's weights differ in it; None where they agree."""
    if spec.family != "timm" or getattr(spec.weights, "tag", None):
        return None
    import timm

    from semcorr.networks.backbones.timm import preparations

    if len(known := preparations(spec.model)) < 2:
        return None
    trained: Any = timm.get_pretrained_cfg(spec.model)
    own = tuple(trained.mean), tuple(trained.std), trained.interpolation
    others = ", ".join(tag for key, tags in known.items() if key != own for tag in tags)
    return (
        f"images are prepared as for {trained.tag} (mean {own[0]}, deviation {own[1]}, {own[2]}). "
        f"If the file is one of {others}, which differ, say so there"
    )


def _remembered() -> dict[str, Any]:
    try:
        values = json.loads(MEMORY.read_text(encoding="utf-8"))
        return {key: facts for key, facts in values.items() if facts.keys() == FACTS}
    except (OSError, ValueError, AttributeError):  # missing or damaged
        return {}
