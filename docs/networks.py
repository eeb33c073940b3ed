"""Try pretrained networks of timm, and write the table of docs/networks.md: `python docs/networks.py` (some minutes).

Each is checked as `semcorr validate` does, built with random tensors, run on an image, and matched with itself. Nothing
is downloaded. What validation refuses is listed with its reason.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from semcorr import params
from semcorr.artifacts.progress import progress
from semcorr.errors import UserError
from semcorr.matching import match_points
from semcorr.networks import architectures
from semcorr.networks.backbones import build
from semcorr.networks.backbones.base import Backbone, Blockwise
from semcorr.readouts.argmax import argmax
from semcorr.tensors import normalise

PAGE = Path(__file__).with_name("networks.md")
START, END = "<!-- written by docs/networks.py -->\n", "<!-- end -->\n"
TAGS = [
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_dinov3.lvd1689m",
    "convnext_tiny.dinov3_lvd1689m",
    "vit_base_patch16_clip_224.laion2b",
    "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "vit_base_patch16_siglip_224.v2_webli",
    "naflexvit_base_patch16_siglip.v2_webli",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_224.dino",
    "vit_base_patch16_224.augreg_in21k",
    "deit_small_patch16_224.fb_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "eva02_tiny_patch14_224.mim_in22k",
    "eva02_base_patch14_224.mim_in22k",
    "vit_pe_core_tiny_patch16_384.fb",
    "vit_pe_spatial_tiny_patch16_512.fb",
    "vit_pe_core_base_patch16_224.fb",
    "vit_base_patch16_radio_v3.c_radio",
    "naflexvit_base_patch16_radio_v3.c_radio",
    "vit_huge_patch14_gap_224.in1k_ijepa",
    "flexivit_small.300ep_in1k",
    "vit_small_patch16_rope_mixed_224.naver_in1k",
    "aimv2_large_patch14_224.apple_pt",
    "beit_base_patch16_224.in22k_ft_in22k",
    "beitv2_base_patch16_224.in1k_ft_in22k",
    "cait_xxs24_224.fb_dist_in1k",
    "xcit_nano_12_p8_224.fb_dist_in1k",
    "vit_relpos_small_patch16_224.sw_in1k",
    "vitamin_small_224.datacomp1b_clip",
    "samvit_base_patch16.sa1b",
    "sam2_hiera_tiny.fb_r896",
    "hiera_tiny_224.mae",
    "swin_tiny_patch4_window7_224.ms_in22k",
    "swinv2_tiny_window8_256.ms_in1k",
    "pvt_v2_b0.in1k",
    "davit_tiny.msft_in1k",
    "focalnet_tiny_srf.ms_in1k",
    "mvitv2_tiny.fb_in1k",
    "maxvit_tiny_tf_224.in1k",
    "coatnet_nano_rw_224.sw_in1k",
    "convnext_tiny.fb_in22k",
    "convnextv2_atto.fcmae",
    "resnet50.a1_in1k",
    "resnetv2_50.a1h_in1k",
    "regnety_002.pycls_in1k",
    "efficientnet_b0.ra_in1k",
    "mobilenetv3_small_050.lamb_in1k",
    "levit_128s.fb_dist_in1k",
    "inception_v3.tv_in1k",
]


def spec_of(tag: str, layer: int) -> params.BackboneSpec:
    """The entry of params.yaml that asks for a network."""
    model, _, name = tag.partition(".")
    entry = {"family": "timm", "model": model, "overrides": {}, "weights": {"kind": "timm", "tag": name}}
    entry |= {"layer": layer, "facet": "token", "norm": False, "debias": None, "image_size": 112}
    return params.BackboneSpec.model_validate(entry | {"compute": "float32", "precision": "float32"})


def try_out(network: Backbone, tag: str) -> None:
    """Match an image of noise with itself by some layers: each point is found in its own cell."""
    pixels = np.random.default_rng(0).integers(0, 255, (84, 112, 3), np.uint8)
    points = np.array([[10.0, 20.0], [100.0, 70.0]])
    for layer in sorted({0, network.depth // 2, network.depth - 1}):
        spec = spec_of(tag, layer)
        given, grid = network.at(spec).preprocess(Image.fromarray(pixels), spec.image_size)
        with torch.inference_mode():
            features = network.features(given[None], spec)[0].permute(1, 2, 0)
        unit = normalise(features[: grid.shape[0], : grid.shape[1]])
        found, similarity = match_points(points, (unit, grid), (unit, grid), "nearest", argmax)
        assert (np.abs(similarity - 1) < 1e-4).all(), f"{tag}, layer {layer}: similarity with itself is {similarity}"
        assert (np.abs(found - points) <= grid.stride / 2 + 0.5).all(), f"{tag}, layer {layer}: found at {found}"


def _listed(values: list[int]) -> str:
    """The values of all layers, or the one that they share."""
    return " ".join(map(str, values)) if len(set(values)) > 1 else str(values[0])


def row_of(tag: str) -> str:
    """A network's row of the table.

    Raises:
        UserError: validation refuses it.
    """
    spec = spec_of(tag, 0)
    facts = architectures.facts_of(spec)
    network = build(spec)
    try_out(network, tag)
    strides, widths = (_listed(facts[part]) for part in ("strides", "widths"))
    side = f"{facts['side']} px at most" if facts["side"] else "any"
    facets = "yes" if len(facts["facets"]) > 1 else "no"
    norm = "yes" if len(facts["norms"]) == network.depth else "last layer" if facts["norms"] else "no"
    count = sum(tensor.numel() for tensor in network.net.parameters()) / 1e6
    licence = timm.get_pretrained_cfg(tag).license or "not said"
    tuned = "yes" if isinstance(network, Blockwise) else "no"
    cells = [f"`{tag}`", network.depth, strides, widths, side, facets, norm, tuned, f"{count:,.0f} M", licence]
    return f"| {' | '.join(map(str, cells))} |"


def table() -> Iterator[str]:
    """The lines of the table, and of what is refused."""
    yield "| weights | layers | strides | channels | image size | facets | norm | tuning | tensors | licence |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    refused = []
    for tag in progress(TAGS, unit="network", desc="networks"):
        try:
            yield row_of(tag)
        except UserError as error:
            reason = str(error).removeprefix("params.yaml: model: ").partition("is not possible: ")[2]
            refused.append(f"- `{tag}`: {reason}")
    yield ""
    yield "Refused:"
    yield ""
    yield from refused


def main() -> None:
    """Write the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    written = "\n".join(table())
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{START}{written}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
