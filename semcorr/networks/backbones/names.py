"""The naming schemes of checkpoints, told apart by their names: official files, Hugging Face's, CLIP's and timm's.

Each is turned into the names of one of two libraries, timm or segment-anything. Tensors that a scheme is known to hold
beside the image encoder (mask tokens, heads, decoders, text towers) are left out; everything else is passed on, so that
the caller notices what it does not expect.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from semcorr.errors import UserError

Tensors = dict[str, Tensor]
Rules = list[tuple[str, str]]  # regular expressions and what replaces them, applied in order

DINOV2: Rules = [(r"^register_tokens$", "reg_token"), (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")]
DINOV3: Rules = [
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
]
DINOV3_CONVNEXT: Rules = [
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
]
HUGGING_FACE_DINOV2: Rules = [
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
]
HUGGING_FACE_DINOV3: Rules = [
    (r"^model\.", ""),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^layer\.", "blocks."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
]
HUGGING_FACE_CONVNEXT: Rules = [
    (r"^model\.", ""),
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"^stages\.(\d+)\.downsample_layers\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^layer_norm\.", "head.norm."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.layer_norm\.", ".norm."),
    (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
]
HUGGING_FACE_SAM: Rules = [
    (r"^vision_encoder\.layers\.", "blocks."),
    (r"^vision_encoder\.patch_embed\.projection\.", "patch_embed.proj."),
    (r"^vision_encoder\.neck\.conv1\.", "neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "neck.3."),
    (r"^vision_encoder\.", ""),
    (r"\.layer_norm([12])\.", r".norm\1."),
]
CLIP: Rules = [
    (r"^conv1\.", "patch_embed.proj."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^class_embedding$", "cls_token"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
]
SAM_EXTRA = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")
CLIP_TEXT: tuple[str, ...] = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "text_projection",
    "ln_final.",
    "text.",
)
CLIP_TEXT += ("logit_scale", "logit_bias", "text_decoder.", "cls_emb")
CLIP_HEAD = ("visual.proj", "visual.head.")
OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI keeps among the tensors
DINOV3_EXTRA = ("mask_token", "rope_embed.periods", "local_cls_norm.weight", "local_cls_norm.bias")


def timm(tensors: Tensors, net: Any) -> Tensors:
    """Tensors under the names of a network of timm."""
    names = tensors.keys()
    if any(name.startswith("visual.") for name in names):
        return _clip(tensors, net)
    if any(name.startswith("vision_encoder.layers.") or name.startswith("image_encoder.blocks.") for name in names):
        return segment_anything(tensors, "fc")
    if any(re.match(r"^encoder\.layer\.\d+\.attention\.", name) for name in names):
        return hugging_face_dinov2(tensors)
    if any(re.match(r"^(model\.)?layer\.\d+\.attention\.q_proj\.", name) for name in names):
        return _dinov3(_hugging_face_dinov3(tensors), net)
    if any(".depthwise_conv." in name for name in names):
        return renamed(tensors, HUGGING_FACE_CONVNEXT)
    if any(name.startswith("downsample_layers.") for name in names):
        return renamed(_without(tensors, ("norms.",)), DINOV3_CONVNEXT)
    if "storage_tokens" in names:
        return _dinov3(tensors, net)
    if "mask_token" in names and "blocks.0.ls1.gamma" in names:
        return _dinov2(tensors)
    return _own(tensors, net)


def hugging_face_dinov2(tensors: Tensors) -> Tensors:
    """Hugging Face's DINOv2 under timm's names."""
    return _dinov2(_with_qkv(renamed(tensors, HUGGING_FACE_DINOV2)))


def segment_anything(tensors: Tensors, linear: str) -> Tensors:
    """The tensors of SAM's image encoder; `linear` names the layers of its MLPs, lin in SAM and fc in timm."""
    if any(name.startswith("vision_encoder.") for name in tensors):
        tensors = renamed(_without(tensors, SAM_EXTRA), HUGGING_FACE_SAM)
    elif any(name.startswith("image_encoder.") for name in tensors):
        tensors = renamed(_without(tensors, SAM_EXTRA), [(r"^image_encoder\.", "")])
    return renamed(tensors, [(r"\.mlp\.(?:lin|fc)([12])\.", rf".mlp.{linear}\1.")])


def renamed(tensors: Tensors, rules: Rules) -> Tensors:
    """Tensors under new names.

    Raises:
        ValueError: two tensors would have one name.
    """
    found = {}
    for old, tensor in tensors.items():
        name = old
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        if name in found:
            raise ValueError(f"two tensors would be named {name}")
        found[name] = tensor
    return found


def _without(tensors: Tensors, prefixes: Iterable[str]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(prefixes))}


def _with_qkv(tensors: Tensors) -> Tensors:
    """Queries, keys and values, kept apart by Hugging Face, as one tensor."""
    found = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(.*\.attn\.)query\.(weight|bias)", name):
            parts = [found.pop(f"{match[1]}{part}.{match[2]}") for part in ("query", "key", "value")]
            found[f"{match[1]}qkv.{match[2]}"] = torch.cat(parts)
    return found


def _own(tensors: Tensors, net: Any) -> Tensors:
    """The file of timm itself, without the classifier, which the network here does not have."""
    heads = net.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    own = net.state_dict().keys()
    extra = {name for name in tensors if name.startswith(prefixes) and name not in own} if prefixes else set()
    return {name: tensor for name, tensor in tensors.items() if name not in extra}


def _dinov2(tensors: Tensors) -> Tensors:
    """The official DINOv2 file, without its mask token, which is only for training."""
    adopted = renamed(_without(tensors, ("mask_token",)), DINOV2)
    if "reg_token" in adopted:  # timm adds positions only to the patches, so the class token's is added here
        positions = adopted["pos_embed"]
        adopted["cls_token"] = adopted["cls_token"] + positions[:, :1]
        adopted["pos_embed"] = positions[:, 1:]
    return adopted


def _dinov3(tensors: Tensors, net: Any) -> Tensors:
    """The official DINOv3 file.

    Left out: the mask token, the norm of local crops, and constants: the periods of the rotary embedding and the
    masks that keep the keys' biases at zero.
    """
    kept = {name: tensor for name, tensor in tensors.items() if name not in DINOV3_EXTRA}
    names = net.state_dict().keys()
    adopted = {}
    for name, tensor in renamed(kept, DINOV3).items():
        if name.endswith(".bias_mask"):
            continue
        if not name.endswith("attn.qkv.bias"):
            adopted[name] = tensor
            continue
        query, _, value = tensor.chunk(3)
        prefix = name.removesuffix("qkv.bias")
        if f"{prefix}q_bias" in names:
            adopted |= {f"{prefix}q_bias": query, f"{prefix}v_bias": value}
        elif query.any() or value.any():
            model = net.pretrained_cfg.get("architecture") or "this network"
            raise UserError(f"{name} is not zero, but timm's {model} has none. Take model {model}_qkvb")
    return adopted


def _hugging_face_dinov3(tensors: Tensors) -> Tensors:
    """Hugging Face's DINOv3 under the official names; its keys have no bias."""
    found = renamed(tensors, HUGGING_FACE_DINOV3)
    gated = any(".mlp.w1." in name for name in found)
    rules = [(r"\.mlp\.up_proj\.", ".mlp.w2." if gated else ".mlp.fc1.")]
    found = renamed(found, rules if gated else [*rules, (r"\.mlp\.w3\.", ".mlp.fc2.")])
    for name in [name for name in found if name.endswith(".attn.query.bias")]:
        found.setdefault(name.replace("query", "key"), torch.zeros_like(found[name]))
    return _with_qkv(found)


def _clip(tensors: Tensors, net: Any) -> Tensors:
    """CLIP's own file, or open_clip's, whose image tower is CLIP's or a network of timm; without text and heads.

    Raises:
        UserError: it is OpenAI's, and the network's activation is another.
    """
    if any(name in tensors for name in OPENAI):
        activations = {type(module).__name__ for module in net.modules()} & {"GELU", "QuickGELU"}
        if activations != {"QuickGELU"}:
            raise UserError(
                "OpenAI's CLIP has the activation QuickGELU. Take a model with _clip_quickgelu_ in its name"
            )
    vision = _without(tensors, (*CLIP_TEXT, *CLIP_HEAD, *OPENAI))
    vision = renamed(vision, [(r"^visual\.(?:trunk\.)?", "")])
    if "class_embedding" not in vision:
        return _own(vision, net)
    vision = renamed(vision, CLIP)
    return vision | {"cls_token": vision["cls_token"][None, None], "pos_embed": vision["pos_embed"][None]}
