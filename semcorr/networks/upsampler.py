"""A small decoder that turns a network's features into those of a finer grid; it is trained with the tuned blocks."""

import torch
from torch import Tensor, nn

from semcorr.params import Head

PREFIX = "upsampler."  # of its tensors in a checkpoint


class Upsampler(nn.Module):
    """A projection to fewer channels, and a step for each doubling of the resolution.

    Each step adds what it has learnt to bilinear interpolation, and starts with nothing learnt.

    Args:
        width: channels of the network's features.
        head: channels and upsampling.

    Attributes:
        width, upsample, channels: these.
    """

    def __init__(self, width: int, head: Head):
        super().__init__()
        self.width, self.upsample, self.channels = width, head.upsample, head.channels
        self.project = nn.Conv2d(width, head.channels, 1, bias=False)
        nn.init.orthogonal_(self.project.weight.flatten(1))
        self.steps = nn.ModuleList(_Step(head.channels) for _ in range(head.upsample.bit_length() - 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Features (B, C, h, w) -> (B, channels, h * upsample, w * upsample)."""
        if torch.is_grad_enabled():
            return self._refined(maps)
        # One by one: the last bits of a convolution may depend on how many images there are.
        return torch.cat([self._refined(one) for one in maps.split(1)])

    def _refined(self, maps: Tensor) -> Tensor:
        maps = self.project(maps)
        for step in self.steps:
            maps = step(maps)
        return maps


class _Step(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.out = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor) -> Tensor:
        smooth = nn.functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return smooth + self.out(nn.functional.gelu(self.up(maps)))


def upsampler_of(tensors: dict[str, Tensor]) -> Upsampler:
    """The upsampler with these tensors, which are named as in its state dict; they are not to be trained.

    Raises:
        KeyError, ValueError, RuntimeError: they are those of no upsampler.
    """
    channels, width, *_ = tensors["project.weight"].shape
    steps = {name.split(".")[1] for name in tensors if name.startswith("steps.")}
    head = Head.model_validate({"upsample": 2 ** len(steps), "channels": channels})
    with torch.device("meta"):  # nothing is drawn, and no memory is taken for what the tensors only claim
        upsampler = Upsampler(width, head)
    upsampler.load_state_dict(tensors, assign=True)
    return upsampler.float().eval().requires_grad_(False)
