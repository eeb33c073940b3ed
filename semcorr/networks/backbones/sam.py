"""The image encoder of Segment Anything, through the segment-anything package.

As in the official transform, the standardised image is padded to the encoder's square canvas, whatever its long side;
only the cells that it covers are features.
"""

from functools import partial

from PIL import Image as PillowImage
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from semcorr.errors import UserError
from semcorr.networks.backbones import names
from semcorr.networks.backbones.attention import FACETS
from semcorr.networks.backbones.base import Blockwise
from semcorr.params import BackboneSpec

# segment_anything.build_sam: the three published sizes.
SIZES = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": [2, 5, 8, 11]},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": [5, 11, 17, 23]},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": [7, 15, 23, 31]},
}
COMMON = {
    "img_size": 1024,
    "mlp_ratio": 4,
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    "patch_size": 16,
    "qkv_bias": True,
    "use_rel_pos": True,
    "window_size": 14,
    "out_chans": 256,
}


def network(spec: BackboneSpec) -> Blockwise:
    """The encoder of an entry of params.yaml."""
    return Encoder(spec.model, spec.overrides)


class Encoder(Blockwise):
    """SAM's encoder; activations are maps (B, h, w, C)."""

    facets = ("token", *FACETS)
    mean = (123.675 / 255, 116.28 / 255, 103.53 / 255)
    std = (58.395 / 255, 57.12 / 255, 57.375 / 255)
    resample = PillowImage.Resampling.BILINEAR

    def __init__(self, model: str, overrides: dict):
        super().__init__()
        if model not in SIZES:
            raise UserError(f"params.yaml: SAM has no model {model!r}; allowed: {', '.join(SIZES)}")
        try:
            self.net = ImageEncoderViT(**COMMON | SIZES[model] | overrides)
        except Exception as error:  # each layer has its own errors
            raise UserError(f"params.yaml: SAM cannot be built with overrides {overrides} ({error})") from None
        self.name = f"sam_{model}"
        self.side = self.net.img_size
        self.stride = self.multiple = self.net.patch_embed.proj.stride[0]
        if self.side % self.stride:
            raise UserError(
                f"params.yaml: SAM's img_size {self.side} is not a multiple of its patch size {self.stride}"
            )
        depth = len(self.net.blocks)
        self.strides, self.widths = [self.stride] * depth, [self.net.patch_embed.proj.out_channels] * depth
        self.neck_width = self.net.neck[0].out_channels

    def embed(self, images: Tensor) -> Tensor:
        return self.net.patch_embed(images) + self.net.pos_embed

    def run(self, activations: Tensor, cells: tuple[int, int], first: int, stop: int) -> Tensor:
        for block in self.net.blocks[first:stop]:
            activations = self.step(block, activations)
        return activations

    def read(self, activations: Tensor, cells: tuple[int, int], *, norm: bool, neck: bool) -> Tensor:
        assert not norm, "params.py refuses a final norm here"
        features = activations.permute(0, 3, 1, 2)
        return self.net.neck(features) if neck else features

    def adopt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return names.segment_anything(tensors, "lin")

    def facet(self, activations: Tensor, cells: tuple[int, int], block: int, facet: str) -> Tensor:
        attention = self.net.blocks[block]
        parts = attention.attn.qkv(attention.norm1(activations)).chunk(3, dim=-1)
        return parts[FACETS.index(facet)].permute(0, 3, 1, 2)

    def activation_shape(self, cells: tuple[int, int]) -> tuple[int, ...]:
        return *cells, self.widths[0]

    def tuned_modules(self, blocks: int, spec: BackboneSpec) -> list[nn.Module]:
        stop = self.stop(spec)
        return [*self.net.blocks[stop - blocks : stop], *([self.net.neck] if "neck" in spec.layers else [])]
