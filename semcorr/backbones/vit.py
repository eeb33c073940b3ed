"""Vision transformers of timm: DINOv2 (position embeddings) and DINOv3 (rotary ones), and their like.

timm resamples DINOv2's position embeddings with antialiasing; the official code does so without it and with an
offset of 0.1, so away from 518 pixels the features differ slightly.
"""

import timm
from torch import Tensor, nn

from semcorr.backbones.base import Backbone
from semcorr.errors import UserError


class TimmVit(Backbone):
    """A timm vision transformer; activations are tokens (B, prefix + h * w, C)."""

    def __init__(self, model: str, overrides: dict):
        super().__init__()
        try:
            self.net = timm.create_model(model, pretrained=False, num_classes=0, dynamic_img_size=True, **overrides)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise UserError(
                f"params.yaml: timm cannot build model {model!r} with overrides {overrides} ({error}). "
                f"Names: python -c \"import timm; print(timm.list_models('vit*'))\""
            ) from None
        self.stride = self.net.patch_embed.patch_size[0]
        self.depth = len(self.net.blocks)
        self.mean, self.std = self.net.pretrained_cfg["mean"], self.net.pretrained_cfg["std"]

    def embed(self, images: Tensor) -> Tensor:
        """See Backbone."""
        tokens = self.net._pos_embed(self.net.patch_embed(images))
        return self.net.norm_pre(tokens[0] if isinstance(tokens, tuple) else tokens)

    def run(self, activations: Tensor, cells: tuple[int, int], first: int, stop: int) -> Tensor:
        """See Backbone."""
        rope = getattr(self.net, "rope", None)
        extra = {} if rope is None else {"rope": rope.get_embed(shape=cells)}
        for block in self.net.blocks[first:stop]:
            activations = block(activations, **extra)
        return activations

    def read(self, activations: Tensor, cells: tuple[int, int], *, norm: bool, neck: bool) -> Tensor:
        """See Backbone; the class and register tokens are dropped."""
        assert not neck, "params.py refuses a neck here"
        activations = self.net.norm(activations) if norm else activations
        patches = activations[:, self.net.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, cells)

    def tuned_modules(self, blocks: int, layer: int, norm: bool) -> list[nn.Module]:
        """See Backbone."""
        return [*self.net.blocks[layer + 1 - blocks : layer + 1], *([self.net.norm] if norm else [])]
