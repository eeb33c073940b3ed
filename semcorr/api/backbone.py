"""A network with dense features, as an `nn.Module`."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from semcorr import params
from semcorr.artifacts import provenance
from semcorr.errors import UserError
from semcorr.geometry import Grid, resized_size
from semcorr.networks.backbones import digest, overlay
from semcorr.networks.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from semcorr.networks.backbones.weights import get
from semcorr.networks.encode import dense
from semcorr.networks.published import PUBLISHED, cache

# The base networks, by the words of the public API.
OFFICIAL: dict[str, dict[str, Any]] = {
    choice: {key: PUBLISHED[name].entry[key] for key in ("family", "model", "weights")}
    for choice, name in {"dinov2": "dinov2_b14", "dinov3": "dinov3_b16", "sam": "sam_b"}.items()
}


class UnifiedBackbone(nn.Module):
    """A network with dense features.

    Args:
        backbone_choice: "dinov2" (ViT-B/14), "dinov3" (ViT-B/16) or "sam" (ViT-B); or a name that `semcorr backbones`
            lists, at its layer.
        finetune_choice: put the tuned tensors of `checkpoint_dir` (best.safetensors, as the stage finetune writes it)
            over the network's own. They are refused on other tensors than they were tuned from.
        checkpoint_dir: checkpoints/<backbone>/<tuning>.
        device: to compute on; None takes a GPU where there is one.
        weights: where the tensors come from: a file (.pth or .safetensors, official or timm's, or
            data/weights/<backbone>/frozen.safetensors), or a source as under `weights` in params.yaml; None takes the
            official ones, downloaded once.
        model: another published size, by timm's or segment-anything's name.
        layer: 0-based block whose output is the features, a list of them, or "neck" of SAM; None takes the last block.
        facet: "token", or "query", "key", "value" of the block's attention.
        norm: apply the final norm to them.
        compute: "float32", or "bfloat16", "float16" for mixed precision.
        precision: the features are rounded to it, as a feature store does.
        overrides: of the architecture, as in params.yaml.

    Raises:
        UserError: the tensors cannot be had or are not the network's; there is no such layer; the checkpoint is
            missing or was tuned from other tensors.
    """

    def __init__(
        self,
        backbone_choice: str = "dinov2",
        finetune_choice: bool = False,
        checkpoint_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        weights: str | Path | dict[str, Any] | None = None,
        model: str | None = None,
        layer: int | list[int] | Literal["neck"] | None = None,
        facet: str = "token",
        norm: bool = False,
        compute: str = "float32",
        precision: str = "float16",
        overrides: dict[str, Any] | None = None,
    ):
        super().__init__()
        if backbone_choice not in OFFICIAL and backbone_choice not in PUBLISHED:
            known = ", ".join([*OFFICIAL, *PUBLISHED])
            raise UserError(f"UnifiedBackbone: no backbone {backbone_choice!r}; allowed: {known}")
        official = OFFICIAL.get(backbone_choice)
        if official is None:
            official = PUBLISHED[backbone_choice].entry
            layer = official["layer"] if layer is None else layer
        if model is not None and model != official["model"] and weights is None:
            raise UserError(f"UnifiedBackbone: weights: say where the tensors of {model} come from")
        self._setup(
            family=official["family"],
            model=model or official["model"],
            overrides=overrides or {},
            weights=_source(weights, official["weights"]),
            layer=layer,
            facet=facet,
            norm=norm,
            debias=None,
            compute=compute,
            precision=precision,
            device=device,
        )
        if finetune_choice:
            if checkpoint_dir is None:
                raise UserError(
                    "UnifiedBackbone: finetune_choice needs checkpoint_dir (checkpoints/<backbone>/<tuning>)"
                )
            self._adopt_tuned(Path(checkpoint_dir))

    @classmethod
    def from_params(
        cls,
        name: str,
        checkpoint_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        path: str | Path = params.PARAMS_FILE,
    ) -> "UnifiedBackbone":
        """The network of an entry of `backbones` in params.yaml, with its tensors, layer, norm and precision."""
        known = params.load(Path(path)).backbones
        if name not in known:
            raise UserError(f"{path}: backbones: no {name!r}; allowed: {', '.join(known)}")
        spec = known[name]
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._setup(**{field: getattr(spec, field) for field in params.BackboneSpec.model_fields}, device=device)
        if checkpoint_dir is not None:
            self._adopt_tuned(Path(checkpoint_dir))
        return self

    def _setup(self, *, layer: int | list[int] | str | None, device: str | torch.device | None, **entry: Any) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # The last layer is known once the network is; the long side is the images' here.
        values = {"image_size": 518} | entry | {"layer": 0 if layer is None else layer}
        try:
            spec = params.BackboneSpec.model_validate(values)
        except ValidationError as error:
            raise UserError(f"UnifiedBackbone: {params.explain(error)}") from None
        self.network, self.origin = get(spec, spec.weights, cache())
        if layer is None:
            spec = spec.model_copy(update={"layer": self.network.depth - 1})
        self.network.stop(spec)  # whether there is such a layer
        self.spec, self.precision = spec, getattr(torch, spec.precision)
        self.network.to(self.device)

    def _adopt_tuned(self, folder: Path) -> None:
        path = folder / "best.safetensors"
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint. Make it with the stage finetune (dvc repro)")
        record = provenance.read(path)
        ours = {"layer": self.spec.layer, "facet": self.spec.facet, "norm": self.spec.norm}
        made = {name.rpartition(".")[2]: value for name, value in record.get("settings", {}).items()}
        overlay(self.network, path, digest(self.network.net.state_dict()))
        for key, value in ours.items():
            if made.get(key) != value:
                raise UserError(f"{path}: was tuned for {key} {made.get(key)}, this backbone has {value}")

    def grid(self, size: tuple[int, int]) -> Grid:
        """How the feature map lies on an image (H, W); one larger than SAM's canvas is shrunk to it."""
        side = getattr(self.network, "side", None)
        resized = size if side is None or max(size) <= side else resized_size(size, side)
        return Grid(image_size=size, resized_size=resized, stride=self.network.stride)

    @torch.inference_mode()
    def extract_features(self, image: Tensor) -> Tensor:
        """Dense features.

        Args:
            image: (B, 3, H, W), RGB standardised with ImageNet's mean and deviation, of any size; a network that was
                trained with others is given its own.

        Returns:
            (B, h, w, C) float32, the cells that the image covers.

        Raises:
            ValueError: the image has another shape, no pixels, or pixels that are no numbers.
            UserError: the features overflow `precision`.
        """
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"image is {tuple(image.shape)}, expected (B, 3, H, W)")
        if not image.is_floating_point():
            raise ValueError(f"image is {image.dtype}, expected standardised RGB in floats")
        grid = self.grid((image.shape[2], image.shape[3]))
        pixels = image.to(self.device, torch.float32)
        if grid.resized_size != grid.image_size:
            pixels = nn.functional.interpolate(pixels, grid.resized_size, mode="bilinear", antialias=True)
        if not torch.isfinite(pixels).all():
            raise ValueError("image holds NaN or infinite values")
        if (self.network.mean, self.network.std) != (IMAGENET_MEAN, IMAGENET_STD):
            theirs, ours = ((IMAGENET_MEAN, IMAGENET_STD), (self.network.mean, self.network.std))
            centre, scale, mean, std = (pixels.new_tensor(values)[:, None, None] for values in (*theirs, *ours))
            pixels = (pixels * scale + centre - mean) / std
        what = f"{self.network.name}: image of {image.shape[3]} x {image.shape[2]} pixels"
        return dense(self.network, self.spec, self.network.pad(pixels), grid, what, "precision").float()

    forward = extract_features


def _source(weights: str | Path | dict[str, Any] | None, official: dict[str, Any]) -> dict[str, Any]:
    """A source as params.yaml has it."""
    if weights is None:
        return official
    if isinstance(weights, dict):
        return weights
    return {"kind": "file", "path": str(weights), "sha256": None}
