"""Vision transformers of timm: DINOv2 (position embeddings), DINOv3 (rotary embeddings), and similar ones.

timm resamples DINOv2's position embeddings with antialiasing, the official code without it and with an offset of 0.1,
so at sizes other than 518 pixels the features differ slightly.
"""

import re
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semcorr.errors import UserError
from semcorr.networks.backbones.base import Backbone
from semcorr.params import BackboneSpec

# Names in the official files -> in timm.
DINOV2 = {"register_tokens": "reg_token", "mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}
DINOV3 = {"storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
DINOV3 |= {"mlp.w1": "mlp.fc1_g", "mlp.w2": "mlp.fc1_x", "mlp.w3": "mlp.fc2"}


def _renamed(name: str, table: dict[str, str]) -> str:
    return next((name.replace(official, new) for official, new in table.items() if official in name), name)


def require_known(model: str) -> None:
    """Check that timm has a model.

    Raises:
        UserError: it does not; the message lists similar names.
    """
    if "/" not in model and ":" not in model and "." not in model and timm.is_model(model):
        return
    words = set(re.split(r"[^a-z0-9]+", model.lower()))
    names = sorted(timm.list_models("vit*"), key=lambda name: (-len(words & set(name.split("_"))), len(name), name))
    raise UserError(
        f"params.yaml: timm cannot build model {model!r}: it has none of this name. A name has no hub before it and "
        f"no tag behind it (tags go into weights). Similar names: {', '.join(names[:4])}"
    )


def _not_plain(model: str, why: str) -> UserError:
    return UserError(
        f"params.yaml: model: {model!r} is not possible: {why}. Supported are timm's plain vision transformers: "
        f"DINOv2, DINOv3, CLIP, SigLIP, MAE, DeiT, EVA-02 and similar ones, such as vit_base_patch14_dinov2"
    )


class Network(Backbone):
    """A timm vision transformer; activations are tokens (B, prefix + h * w, C)."""

    def __init__(self, model: str, overrides: dict):
        super().__init__()
        require_known(model)
        try:
            self.net = timm.create_model(model, pretrained=False, num_classes=0, dynamic_img_size=True, **overrides)
        except Exception as error:  # each architecture raises its own for unknown arguments
            if "dynamic_img_size" in str(error):
                raise _not_plain(model, "it takes images of one size, or is not a plain transformer") from None
            problem = f"timm cannot build model {model!r} with overrides {overrides} ({error})"
            raise UserError(f"params.yaml: {problem}") from None
        if not isinstance(self.net, VisionTransformer | Eva):
            raise _not_plain(model, f"it is a {type(self.net).__name__}")
        if type(self.net.patch_embed) is not PatchEmbed:
            raise _not_plain(model, f"its patches come out of a {type(self.net.patch_embed).__name__}")
        if getattr(self.net, "rope_mixed", False):
            raise _not_plain(model, "its rotary embedding differs from block to block")
        if len(set(self.net.patch_embed.patch_size)) > 1:
            raise _not_plain(model, f"its patches of {self.net.patch_embed.patch_size} are not square")
        self.name = model
        self.stride = self.net.patch_embed.patch_size[0]
        self.depth, self.width = len(self.net.blocks), self.net.embed_dim
        trained: Any = self.net.pretrained_cfg
        self.mean, self.std = trained["mean"], trained["std"]

    def embed(self, images: Tensor) -> Tensor:
        tokens = self.net._pos_embed(self.net.patch_embed(images))
        return self.net.norm_pre(tokens[0] if isinstance(tokens, tuple) else tokens)

    def run(self, activations: Tensor, cells: tuple[int, int], first: int, stop: int) -> Tensor:
        rope = getattr(self.net, "rope", None)
        extra = {} if rope is None else {"rope": rope.get_embed(shape=cells)}
        for block in self.net.blocks[first:stop]:
            activations = self.step(block, activations, **extra)
        return activations

    def read(self, activations: Tensor, cells: tuple[int, int], *, norm: bool, neck: bool) -> Tensor:
        """Drops class and register tokens."""
        assert not neck, "params.py refuses a neck here"
        return self._map(self.net.norm(activations) if norm else activations, cells)

    def _map(self, tokens: Tensor, cells: tuple[int, int]) -> Tensor:
        patches = tokens[:, self.net.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, cells)

    def adopt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if "storage_tokens" in tensors:
            return self._from_dinov3(tensors)
        if "mask_token" in tensors:
            return self._from_dinov2(tensors)
        return tensors

    def _from_dinov2(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The official DINOv2 file, without its mask token, which is only for training."""
        adopted = {_renamed(name, DINOV2): tensor for name, tensor in tensors.items() if name != "mask_token"}
        if "reg_token" in adopted:  # timm adds positions only to the patches, so the class token's is added here
            positions = adopted["pos_embed"]
            adopted["cls_token"] = adopted["cls_token"] + positions[:, :1]
            adopted["pos_embed"] = positions[:, 1:]
        return adopted

    def _from_dinov3(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The official DINOv3 file.

        Left out: the mask token, the norm of local crops, and constants: the periods of the rotary embedding and the
        masks that keep the keys' biases at zero.
        """
        extra = ("mask_token", "rope_embed.periods", "local_cls_norm.weight", "local_cls_norm.bias")
        names = self.net.state_dict().keys()
        adopted = {}
        for name, tensor in tensors.items():
            if name in extra or name.endswith(".bias_mask"):
                continue
            if not name.endswith("attn.qkv.bias"):
                adopted[_renamed(name, DINOV3)] = tensor
                continue
            query, _, value = tensor.chunk(3)
            prefix = name.removesuffix("qkv.bias")
            if f"{prefix}q_bias" in names:
                adopted |= {f"{prefix}q_bias": query, f"{prefix}v_bias": value}
            elif query.any() or value.any():
                raise UserError(f"{name} is not zero, but timm's {self.name} has none. Take model {self.name}_qkvb")
        return adopted

    def facet(self, activations: Tensor, cells: tuple[int, int], block: int, facet: str) -> Tensor:
        attention, tokens = self.net.blocks[block].attn, self.net.blocks[block].norm1(activations)
        if getattr(attention, "q_bias", None) is None:
            parts = attention.qkv(tokens)
        else:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            parts = nn.functional.linear(tokens, attention.qkv.weight, bias)
        return self._map(parts.chunk(3, dim=-1)[("query", "key", "value").index(facet)], cells)

    def activation_shape(self, cells: tuple[int, int]) -> tuple[int, ...]:
        return self.net.num_prefix_tokens + cells[0] * cells[1], self.width

    def tuned_modules(self, blocks: int, spec: BackboneSpec) -> list[nn.Module]:
        stop = self.stop(spec)
        return [*self.net.blocks[stop - blocks : stop], *([self.net.norm] if spec.norm else [])]
