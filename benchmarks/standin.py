"""Stand-ins for data that benchmarks need: SPair-71k and PF-WILLOW with their counts, and a file of weights.

What is drawn, a disc on a rough background, means nothing; names, counts, sizes and forms are those of the originals.
"""

import json
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image, ImageDraw

from semcorr.datasets.sides import SPAIR71K
from semcorr.datasets.spair import PAIRS

IMAGES = {"trn": 55, "val": 18, "test": 27}  # of each category's 100
SIZES = ((375, 500), (333, 500), (375, 500), (500, 375), (375, 500))  # height, width, in turn
NAMES, SHOWN = 20, 12  # keypoints of a category and of an image; a pair shares 7.2 of them, as in SPair-71k
WILLOW = ("car(G)", "car(M)", "car(S)", "duck(S)", *(f"motorbike({letter})" for letter in "GMS"))
WILLOW += tuple(f"winebottle({letters})" for letters in ("M", "wC", "woC"))
WILLOW_SIZE, WILLOW_IMAGES, WILLOW_KEYPOINTS = (225, 300), 10, 10
GRAIN = np.random.default_rng(0).normal(0, 14, (600, 600, 1))


def count(split: str, scale: float = 1.0) -> tuple[int, int, int]:
    """Images of each category, pairs of the large list, and pairs of the small one.

    Pairs go by the square of `scale`: they are the same share as in SPair-71k of all that the images form.
    """
    full = IMAGES[split]
    images = max(3, round(scale * full))
    share = images * (images - 1) / (full * (full - 1))
    return images, *(round(share * PAIRS[layout][split]) for layout in ("large", "small"))


def write_spair(root: Path, scale: float = 1.0, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """Write a folder in SPair-71k's format.

    Args:
        root: an existing folder.
        scale: of the number of images.
        sizes: (height, width) of the images, in turn.
    """
    rng = np.random.default_rng(0)
    first = number = 0
    for split in PAIRS["large"]:
        images, large, small = count(split, scale)
        names = [f"2008_{first + index:06d}" for index in range(images)]
        known = {
            category: {
                name: _write_image(root, category, name, sizes[index % len(sizes)], rng)
                for index, name in enumerate(names)
            }
            for category in sorted(SPAIR71K)
        }
        first += images
        folder = root / "PairAnnotation" / split
        folder.mkdir(parents=True)
        every = ((category, *both) for category in known for both in permutations(names, 2))
        lines = []
        for category, source, target in islice(every, large):
            pair = _pair(number, category, known[category][source], known[category][target])
            (folder / f"{pair['filename']}.json").write_text(json.dumps(pair))
            lines.append(pair["filename"])
            number += 1
        for layout, kept in (("large", lines), ("small", lines[:: max(1, len(lines) // small)][:small])):
            (root / "Layout" / layout).mkdir(parents=True, exist_ok=True)
            (root / "Layout" / layout / f"{split}.txt").write_text("\n".join(kept) + "\n")


def _write_image(
    root: Path, category: str, name: str, size: tuple[int, int], rng: np.random.Generator
) -> dict[str, Any]:
    """Write an image, its mask and its annotation; return the annotation."""
    height, width = size
    low = rng.integers(1, (width // 3, height // 3))
    high = rng.integers((2 * width // 3, 2 * height // 3), (width, height))
    box = [*low.tolist(), *high.tolist()]
    files = {"JPEGImages": f"{name}.jpg", "Segmentation": f"{name}.png", "ImageAnnotation": f"{name}.json"}
    paths = {folder: root / folder / category / file for folder, file in files.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    draw(size, box, rng).save(paths["JPEGImages"], quality=92)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    mask.save(paths["Segmentation"])
    shown = sorted(rng.permutation(NAMES)[:SHOWN].tolist())
    points = dict(zip(shown, rng.integers(low, high, (SHOWN, 2)).tolist(), strict=True))
    annotation = {
        "filename": f"{name}.jpg",
        "image_width": width,
        "image_height": height,
        "image_depth": 3,
        "category": category,
        "pose": "Left",
        "truncated": 0,
        "occluded": 0,
        "difficult": 0,
        "bndbox": box,
        "kps": {str(number): points.get(number) for number in range(NAMES)},
        "azimuth_id": 2,
    }
    paths["ImageAnnotation"].write_text(json.dumps(annotation))
    return annotation


def draw(size: tuple[int, int], box: list[int], rng: np.random.Generator) -> Image.Image:
    """A disc on coarse noise, with a grain that makes its file as large as a photograph's."""
    height, width = size
    picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height))
    ImageDraw.Draw(picture).ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    top, left = rng.integers(0, (len(GRAIN) - height, len(GRAIN) - width))
    rough = np.asarray(picture) + GRAIN[top : top + height, left : left + width]
    return Image.fromarray(rough.clip(0, 255).astype(np.uint8))


def _pair(number: int, category: str, source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """The annotation of a pair."""
    both = {"src": source, "trg": target}
    common = [key for key, point in source["kps"].items() if point and target["kps"][key]]
    stems = [image["filename"].removesuffix(".jpg") for image in both.values()]
    pair: dict[str, Any] = {"pair_id": number, "filename": f"{number:06d}-{'-'.join(stems)}:{category}"}
    for prefix, image in both.items():
        pair |= {
            f"{prefix}_imname": image["filename"],
            f"{prefix}_imsize": [image["image_width"], image["image_height"], 3],
            f"{prefix}_bndbox": image["bndbox"],
            f"{prefix}_pose": image["pose"],
            f"{prefix}_kps": [image["kps"][key] for key in common],
        }
    codes = {"viewpoint_variation": 3, "scale_variation": 3, "truncation": 4, "occlusion": 4}
    codes = {name: number % levels for name, levels in codes.items()}
    return pair | {"category": category, "kps_ids": common, "mirror": 0, **codes}


def willow_images(scale: float = 1.0) -> int:
    """Images of each sub-set, of which all ordered pairs are taken."""
    return max(3, round(scale * WILLOW_IMAGES))


def write_willow(root: Path, scale: float = 1.0) -> None:
    """Write a folder in PF-WILLOW's format; `scale` as in `write_spair`."""
    rng = np.random.default_rng(1)
    height, width = WILLOW_SIZE
    for subset in WILLOW:
        (root / subset).mkdir(parents=True)
        for number in range(willow_images(scale)):
            stem = root / subset / f"image_{number:03d}"
            draw(WILLOW_SIZE, [width // 5, height // 5, width - 20, height - 20], rng).save(stem.with_suffix(".png"))
            points = rng.uniform(0.2, 0.8, (WILLOW_KEYPOINTS, 2)) * (width, height)
            scipy.io.savemat(stem.with_suffix(".mat"), {"pts_coord": points.T})


def write_dinov2(path: Path, model: str, overrides: dict[str, Any]) -> None:
    """Write random tensors as DINOv2's authors name and keep theirs, for a network of timm without registers."""
    import timm
    import torch

    generator = torch.Generator().manual_seed(0)
    state = timm.create_model(model, num_classes=0, **overrides).state_dict()  # the authors' names, but for one
    for name, tensor in state.items():
        around = 1.0 if ".gamma" in name or ("norm" in name and name.endswith("weight")) else 0.0
        state[name] = around + 0.1 * torch.randn(tensor.shape, generator=generator)
    torch.save(state | {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}, path)
