"""A network with dense features, as an `nn.Module`."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from semcorr import params, plugins
from semcorr.api.export import opened
from semcorr.errors import UserError
from semcorr.geometry import Grid, resized_size
from semcorr.networks.backbones import digest, overlay, require_tuned_for
from semcorr.networks.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from semcorr.networks.backbones.weights import get
from semcorr.networks.encode import dense
from semcorr.networks.published import PUBLISHED, cache

# The base networks, by their names in the public API.
OFFICIAL: dict[str, dict[str, Any]] = {
    choice: {key: PUBLISHED[name].entry[key] for key in ("family", "model", "weights")}
    for choice, name in {"dinov2": "dinov2_b14", "dinov3": "dinov3_b16", "sam": "sam_b"}.items()
}


class UnifiedBackbone(nn.Module):
    """A network with dense features.

    Args:
        backbone_choice: "dinov2" (ViT-B/14), "dinov3" (ViT-B/16) or "sam" (ViT-B); or a name listed by
            `semcorr backbones`, which comes with its own layer.
        finetune_choice: replace tensors by the tuned ones of `checkpoint_dir` (best.safetensors of the stage finetune),
            which must have been tuned from the network's own.
        checkpoint_dir: checkpoints/<backbone>/<tuning>.
        device: to compute on; None uses a GPU if there is one.
        weights: source of the tensors: a file (.pth or .safetensors, official or timm's, or
            data/weights/<backbone>/frozen.safetensors), or a dict as under `weights` in params.yaml; None uses the
            official ones, downloaded once.
        model: another published size, by timm's or segment-anything's name.
        layer: 0-based block whose output is the features, a list of them, or SAM's "neck"; None uses the last block.
        facet: "token", or "query", "key", "value" of the block's attention.
        norm: apply the final norm to the features.
        views: ["plain"], or ["plain", "mirrored"] to join the features of both; None takes the first. A view at another
            size, such as "plain@560", sees the image enlarged or shrunk by that size over that of the entry, or 518.
        compute: "float32", or "bfloat16", "float16" for mixed precision.
        precision: "float16" or "float32", to which the features are rounded, as in a feature store.
        overrides: arguments of the architecture, as in params.yaml.

    Raises:
        UserError: the tensors are unavailable or do not fit the network; the layer does not exist; the checkpoint is
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
        views: list[str] | None = None,
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
        if weights is not None and not isinstance(weights, dict):
            weights = {"kind": "file", "path": str(weights), "sha256": None}
        self._setup(
            family=official["family"],
            model=model or official["model"],
            overrides=overrides or {},
            weights=official["weights"] if weights is None else weights,
            layer=layer,
            facet=facet,
            norm=norm,
            views=["plain"] if views is None else views,
            debias=None,
            compute=compute,
            precision=precision,
            device=device,
        )
        if finetune_choice:
            if checkpoint_dir is None:
                where = "checkpoints/<backbone>/<tuning>"
                raise UserError(f"UnifiedBackbone: finetune_choice needs checkpoint_dir ({where})")
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
        values = params.load(Path(path))
        known = values.backbones
        if values.has_own_code:
            plugins.add(Path(path).parent)
        if name not in known:
            raise UserError(f"{path}: backbones: no {name!r}; allowed: {', '.join(known)}")
        spec = known[name]
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._setup(**{field: getattr(spec, field) for field in params.BackboneSpec.model_fields}, device=device)
        if checkpoint_dir is not None:
            self._adopt_tuned(Path(checkpoint_dir))
        return self

    @classmethod
    def from_checkpoint(cls, source: str | Path, device: str | torch.device | None = None) -> "UnifiedBackbone":
        """A tuned network from a folder that `semcorr export` wrote, or from its address.

        Raises:
            UserError: a file is missing or damaged, or the tensors that were tuned are unavailable or others.
        """
        exported = opened(source)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.network, self.origin, self.spec = exported.network(), exported.name, exported.spec
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = getattr(torch, self.spec.precision)
        self.network.to(self.device)
        return self

    def _setup(self, *, layer: int | list[int] | str | None, device: str | torch.device | None, **entry: Any) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # The last layer is known only once the network is built; images set the long side here, not `image_size`.
        values = {"image_size": 518} | entry | {"layer": 0 if layer is None else layer}
        try:
            spec = params.BackboneSpec.model_validate(values)
        except ValidationError as error:
            raise UserError(f"UnifiedBackbone: {params.explain(error)}") from None
        self.network, self.origin = get(spec, spec.weights, cache())
        if layer is None:
            spec = spec.model_copy(update={"layer": self.network.depth - 1})
        self.network.at(spec)  # raises if there is no such layer
        self.spec, self.precision = spec, getattr(torch, spec.precision)
        self.network.to(self.device)

    def _adopt_tuned(self, folder: Path) -> None:
        path = folder / "best.safetensors"
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint. Make it with the stage finetune (dvc repro)")
        overlay(self.network, path, digest(self.network.net.state_dict()))
        require_tuned_for(self.spec, path)
        self.network.channels(self.spec)  # raises if its head does not fit

    def grid(self, size: tuple[int, int]) -> Grid:
        """How the feature map lies on an image (H, W); one larger than the network's canvas is shrunk.

        With views at several sizes, the map is that of the largest.
        """
        own = self._own_grid(size)
        every = [own, *(self._at(own, other) for other in self.spec.sizes[1:])]
        return max(every, key=lambda grid: max(grid.resized_size))

    def _own_grid(self, size: tuple[int, int]) -> Grid:
        side = self.network.side
        resized = size if side is None or max(size) <= side else resized_size(size, side)
        return self.network.grid(size, resized)

    @torch.inference_mode()
    def extract_features(self, image: Tensor) -> Tensor:
        """Dense features.

        Args:
            image: (B, 3, H, W), RGB of any size, standardised with ImageNet's mean and deviation; converted for a
                network that was trained with others.

        Returns:
            (B, h, w, C) float32, the cells that the image covers.

        Raises:
            ValueError: the image has another shape or type, no pixels, or pixels that are not finite.
            UserError: the features overflow `precision`.
        """
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"image is {tuple(image.shape)}, expected (B, 3, H, W)")
        if not image.is_floating_point():
            raise ValueError(f"image is {image.dtype}, expected standardised RGB in floats")
        grid = self._own_grid((image.shape[2], image.shape[3]))
        pixels = image.to(self.device, torch.float32)
        if grid.resized_size != grid.image_size:
            pixels = nn.functional.interpolate(pixels, grid.resized_size, mode="bilinear", antialias=True)
        if not torch.isfinite(pixels).all():
            raise ValueError("image holds NaN or infinite values")
        given, wanted = (IMAGENET_MEAN, IMAGENET_STD), (self.network.mean, self.network.std)
        if given != wanted:
            centre, scale, mean, std = (pixels.new_tensor(values)[:, None, None] for values in (*given, *wanted))
            pixels = (pixels * scale + centre - mean) / std
        what = f"{self.network.name}: image of {image.shape[3]} x {image.shape[2]} pixels"
        sized = {self.spec.image_size: (self.network.pad(pixels), grid)}
        for size in self.spec.sizes[1:]:  # in proportion: the given image stands for one of `image_size`
            other = self._at(grid, size)
            resized = nn.functional.interpolate(pixels, other.resized_size, mode="bicubic", antialias=True)
            sized[size] = self.network.pad(resized), other
        return dense(self.network, self.spec, sized, what, "precision")[0].float()

    def _at(self, grid: Grid, size: int) -> Grid:
        """An image's grid at another of the backbone's sizes."""
        side = max(1, round(max(grid.resized_size) * size / self.spec.image_size))
        return self.network.grid(grid.image_size, resized_size(grid.image_size, side))

    forward = extract_features
