"""Plain vision transformers of timm: DINOv2 (position embeddings), DINOv3 (rotary embeddings), and similar ones."""

from typing import Any

from torch import Tensor, nn

from semcorr.networks.backbones import names
from semcorr.networks.backbones.attention import FACETS, attention_input, has_projections, projected
from semcorr.networks.backbones.base import Blockwise
from semcorr.params import BackboneSpec


class PlainTransformer(Blockwise):
    """A timm vision transformer; activations are tokens (B, prefix + h * w, C)."""

    def __init__(self, net: Any, name: str):
        super().__init__()
        self.net, self.name = net, name
        self.stride = self.multiple = net.patch_embed.patch_size[0]
        depth = len(net.blocks)
        self.strides, self.widths = [self.stride] * depth, [net.embed_dim] * depth
        can = all(has_projections(getattr(block, "attn", None)) for block in net.blocks)
        self.facets = ("token", *FACETS) if can else ("token",)
        self.norms = () if isinstance(net.norm, nn.Identity) else tuple(range(depth))

    def embed(self, images: Tensor) -> Tensor:
        tokens = self.net._pos_embed(self.net.patch_embed(images))
        return self.net.norm_pre(tokens[0] if isinstance(tokens, tuple) else tokens)

    def run(self, activations: Tensor, cells: tuple[int, int], first: int, stop: int) -> Tensor:
        extra = self._extra(cells)
        for block in self.net.blocks[first:stop]:
            activations = self.step(block, activations, **extra)
        return activations

    def _extra(self, cells: tuple[int, int]) -> dict[str, Tensor]:
        """What every block takes beside the tokens."""
        rope = getattr(self.net, "rope", None)
        return {} if rope is None else {"rope": rope.get_embed(shape=cells)}

    def read(self, activations: Tensor, cells: tuple[int, int], *, norm: bool, neck: bool) -> Tensor:
        """Drops class and register tokens."""
        assert not neck, "params.py refuses a neck here"
        return self._map(self.net.norm(activations) if norm else activations, cells)

    def _map(self, tokens: Tensor, cells: tuple[int, int]) -> Tensor:
        patches = tokens[:, self.net.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, cells)

    def adopt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return names.timm(tensors, self.net)

    def facet(self, activations: Tensor, cells: tuple[int, int], block: int, facet: str) -> Tensor:
        part = self.net.blocks[block]
        return self._map(projected(part.attn, attention_input(part, activations, **self._extra(cells)), facet), cells)

    def activation_shape(self, cells: tuple[int, int]) -> tuple[int, ...]:
        return self.net.num_prefix_tokens + cells[0] * cells[1], self.widths[0]

    def tuned_modules(self, blocks: int, spec: BackboneSpec) -> list[nn.Module]:
        stop = self.stop(spec)
        return [*self.net.blocks[stop - blocks : stop], *([self.net.norm] if spec.norm else [])]
