"""Check params.yaml against the networks themselves before anything runs.

Importing timm takes seconds, so facts about an architecture are cached in `.semcorr/` by its name, overrides and the
version of its library; without new ones, no network is built.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import canonical_json, write_json
from semcorr.errors import UserError
from semcorr.params import BackboneSpec, Params

MEMORY = Path(".semcorr/architectures.json")
FACTS = {"depth", "side", "linear", "width", "neck", "norm"}
LIBRARY = {"timm": "timm", "sam": "segment-anything"}  # family -> the package that builds it


def check(params: Params) -> None:
    """Check that all models exist and have what params.yaml asks of them.

    Raises:
        UserError: one line per problem, with its key in params.yaml.
    """
    known, problems = _remembered(), []
    before = dict(known)
    for name, spec in params.backbones.items():
        key = _key(spec)
        try:
            facts = known[key] = known.get(key) or _find_out(spec)
        except UserError as error:
            problems.append(f"params.yaml: backbones.{name}: {str(error).removeprefix('params.yaml: ')}")
            continue
        problems += [f"params.yaml: backbones.{name}.{problem}" for problem in _problems(spec, facts)]
        if name in params.grid.backbones:
            problems += _lora_problems(name, facts, params)
    if known != before:
        write_json(MEMORY, known)
    if problems:
        raise UserError("\n".join(problems))


def _problems(spec: BackboneSpec, facts: dict[str, Any]) -> list[str]:
    problems = []
    for layer in spec.layers:
        if layer != "neck" and layer >= facts["depth"]:
            problems.append(f"layer: {layer} does not exist; {spec.model} has blocks 0 to {facts['depth'] - 1}")
    if spec.norm and not facts["norm"]:
        problems.append(f"norm: {spec.model} has no final norm before its pooling; allowed: false")
    channels = sum(facts["neck"] if layer == "neck" else facts["width"] for layer in spec.layers)
    if spec.debias is not None and spec.debias.components >= channels:
        problems.append(f"debias.components: {spec.debias.components} would leave nothing of {channels} channels")
    if facts["side"] and spec.image_size > facts["side"]:
        problems.append(f"image_size: {spec.image_size} is more than the network's canvas of {facts['side']} pixels")
    return problems


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
    values = [spec.family, spec.model, spec.overrides, spec.facet, spec.layer == "neck"]
    return canonical_json([*values, f"{package} {version(package)}"])


def _find_out(spec: BackboneSpec) -> dict[str, Any]:
    """Depth, sizes and linear layers of a network, which is built and run on torch's meta device, without real tensors.

    Raises:
        UserError: there is no such network, or it cannot compute these features.
    """
    import torch

    from semcorr.networks.backbones import build

    layer = "neck" if spec.layer == "neck" else 0
    first = spec.model_copy(update={"layer": layer, "norm": False, "debias": None})
    with torch.device("meta"), torch.inference_mode():
        network = build(first)
        image = torch.zeros(1, 3, *network.canvas((network.stride, 2 * network.stride)))
        try:
            shape = network.features(image, first).shape
            assert shape[1:] == (network.channels(first), *network.cells(image)), f"shape {tuple(shape)}"
        except Exception as error:  # overrides or a facet that the network does not support
            setting, why = f"overrides {spec.overrides}, facet {spec.facet}", f"{type(error).__name__}: {error}"
            raise UserError(f"{spec.model} gives no features with {setting} ({why})") from None
    layers = network.net.blocks.named_modules()
    return {
        "depth": network.depth,
        "side": getattr(network, "side", None),
        "linear": sorted({path.rpartition(".")[2] for path, part in layers if isinstance(part, torch.nn.Linear)}),
        "width": network.width,
        "neck": network.neck_width,
        "norm": not isinstance(getattr(network.net, "norm", None), torch.nn.Identity),
    }


def _remembered() -> dict[str, Any]:
    try:
        values = json.loads(MEMORY.read_text(encoding="utf-8"))
        return {key: facts for key, facts in values.items() if facts.keys() == FACTS}
    except (OSError, ValueError, AttributeError):  # missing or damaged
        return {}
