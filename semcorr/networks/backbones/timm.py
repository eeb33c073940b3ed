"""Networks of timm: plain vision transformers, run block by block, and all others that give intermediate features.

timm resamples DINOv2's position embeddings with antialiasing, the official code without it and with an offset of 0.1,
so at sizes other than 518 pixels the features differ slightly.
"""

import re
from typing import Any

import timm
from PIL import Image as PillowImage
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semcorr.errors import UserError, reason
from semcorr.networks.backbones.base import Backbone
from semcorr.networks.backbones.plain import PlainTransformer
from semcorr.networks.backbones.staged import Staged
from semcorr.params import BackboneSpec

# What semcorr decides, or what would make timm build or load something else.
RESERVED = {
    *("pretrained", "num_classes", "dynamic_img_size", "features_only", "out_indices", "scriptable", "exportable"),
    *("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),  # other sources of tensors
}


def network(spec: BackboneSpec) -> Backbone:
    """The network of an entry of params.yaml, with timm's initial tensors.

    Raises:
        UserError: timm has no such network, or it gives no features that cover the image evenly.
    """
    net: Any = create(spec)
    backbone = PlainTransformer(net, spec.model) if is_plain(net) else Staged(net, spec.model, _asked_size(spec))
    trained: Any = net.pretrained_cfg
    backbone.mean, backbone.std = tuple(trained["mean"]), tuple(trained["std"])
    backbone.resample = PillowImage.Resampling[trained["interpolation"].upper()]
    return backbone


def create(spec: BackboneSpec, *, pretrained: bool = False) -> nn.Module:
    """Build timm's network of an entry of params.yaml, for images of any size where it can be.

    Args:
        spec: the entry.
        pretrained: download the tensors of its tag.

    Raises:
        UserError: timm cannot build it.
    """
    tag = getattr(spec.weights, "tag", None)
    require_known(spec.model, tag)
    name = f"{spec.model}.{tag}" if tag else spec.model
    if taken := sorted(RESERVED & spec.overrides.keys()):
        raise UserError(f"params.yaml: overrides: {taken[0]} is not the architecture's; allowed: without it")
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, **spec.overrides}
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except Exception as error:  # each architecture raises its own for unknown arguments
        if "dynamic_img_size" not in str(error):
            if pretrained:
                raise
            raise _not_built(spec, error) from None
    try:
        return timm.create_model(name, **options)
    except Exception as error:
        if pretrained:
            raise
        raise _not_built(spec, error) from None


def _asked_size(spec: BackboneSpec) -> int | None:
    """The image size among the overrides, if there is one."""
    size: Any = spec.overrides.get("img_size")
    if isinstance(size, list) and len(set(size)) > 1:
        raise UserError(f"params.yaml: overrides: img_size: {size} is not square; allowed for {spec.model}: one number")
    return size[0] if isinstance(size, list) else size


def _not_built(spec: BackboneSpec, error: Exception) -> UserError:
    problem = f"timm cannot build model {spec.model!r} with overrides {spec.overrides} ({reason(error)})"
    return UserError(f"params.yaml: {problem}")


def is_plain(net: nn.Module) -> bool:
    """Whether a network of timm is a plain transformer for images of any size, whose blocks can be run one by one."""
    patches: Any = getattr(net, "patch_embed", None)
    return (
        isinstance(net, VisionTransformer | Eva)
        and type(patches) is PatchEmbed
        and bool(patches.dynamic_img_pad or not patches.strict_img_size)
        and len(set(patches.patch_size)) == 1
        and not getattr(net, "rope_mixed", False)  # a rotary embedding that differs from block to block
    )


def require_known(model: str, tag: str | None = None) -> None:
    """Check that timm has a model, and weights with a tag.

    Raises:
        UserError: it does not; the message lists similar names.
    """
    if "/" in model or ":" in model or "." in model or not timm.is_model(model):
        words = set(re.split(r"[^a-z0-9]+", model.lower()))
        names = sorted(timm.list_models(), key=lambda name: (-len(words & set(name.split("_"))), len(name), name))
        raise UserError(
            f"params.yaml: timm cannot build model {model!r}: it has none of this name. A name has no hub before it "
            f"and no tag behind it (tags go into weights). Similar names: {', '.join(names[:4])}"
        )
    if tag and tag not in (known := tags(model)):
        listed = ", ".join(known) or "none"
        raise UserError(f"params.yaml: timm has no weights '{model}.{tag}'; tags of {model}: {listed}")


def tags(model: str) -> list[str]:
    """The tags of a model's pretrained weights; the first is timm's default."""
    return [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*") if full.partition(".")[0] == model]


def preparations(model: str) -> dict[tuple, list[str]]:
    """How images are prepared -- mean, deviation, interpolation -- for each of a model's weights, by tag."""
    known: dict[tuple, list[str]] = {}
    for tag in tags(model):
        trained: Any = timm.get_pretrained_cfg(f"{model}.{tag}")
        known.setdefault((tuple(trained.mean), tuple(trained.std), trained.interpolation), []).append(tag)
    return known
