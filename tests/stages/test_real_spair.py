"""The real SPair-71k of five categories through the stages, against plain loops that share no code with semcorr."""

import json
import math
import os
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from conftest import run_forked
from PIL import Image

from semcorr.artifacts.files import write_json

SHARED = Path(os.environ.get("SEMCORR_DATA", Path(__file__).parents[3] / "shared/datasets"))
ARCHIVE = SHARED / "SPair-71k-animals.tar.gz"
B, D = "dinov2_tiny", "spair_val"
STRIDE, SIDE = 14, 112
FEET = {"cat": [{2, 3}, {9, 10, 11, 12}], "dog": [{2, 3}, {9, 10, 11, 12}]}  # the parts that only geometry tells apart

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(not ARCHIVE.exists(), reason=f"needs {ARCHIVE.name} in a folder that SEMCORR_DATA names"),
]


@pytest.fixture(scope="module")
def project(smoke, tmp_path_factory) -> Path:
    """Frozen features and argmax on all of val's cats and dogs."""
    root = tmp_path_factory.mktemp("real")
    dataset = {"format": "spair", "sources": [{"kind": "path", "path": str(ARCHIVE)}], "expect": "any", "split": "val"}
    dataset |= {"layout": "large", "categories": ["cat", "dog"], "limit": None}
    grid = {"backbones": [B], "baselines": ["frozen"], "tunings": [], "weights": ["frozen"], "datasets": [D]}
    grid |= {"rules": ["argmax"], "train": None, "validate": None, "trunks": []}
    values = {**smoke, "grid": grid, "datasets": {D: dataset}, "tunings": {}}
    values["backbones"] = {B: {**smoke["backbones"][B], "precision": "float32"}}
    values["evaluate"] = {**smoke["evaluate"], "references": {"spair": ["bbox"]}, "sides": {"spair": "spair71k"}}
    write_json(root / "params.yaml", values)
    stages = ("fetch", D), ("weights", B, "frozen"), ("extract", B, "frozen", D), ("match", B, "frozen", D, "argmax")
    for stage in (*stages, ("evaluate", B, "frozen", D, "argmax")):
        run_forked(root, *stage)
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The archive, unpacked by tarfile."""
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "SPair-71k"


def _scores(published: Path, features) -> dict:
    """PCK@0.10 in all and of the geometry-aware subset, dagger, and KAP's counts, from annotations and feature maps."""
    hits, aware, dagger, absent = [], [], [], 0
    for path in sorted((published / "PairAnnotation/val").glob("*.json")):
        pair = json.loads(path.read_text())
        category = pair["category"]
        if category not in FEET:
            continue
        names = [pair[key].removesuffix(".jpg") for key in ("src_imname", "trg_imname")]
        shown = [
            {
                int(k): v
                for k, v in json.loads((published / f"ImageAnnotation/{category}/{name}.json").read_text())[
                    "kps"
                ].items()
                if v is not None
            }
            for name in names
        ]
        source, target = (features(f"{category}/{name}") for name in names)
        absent += len(shown[0].keys() - shown[1].keys())
        x0, y0, x1, y1 = pair["trg_bndbox"]
        for id_, asked, true in zip(map(int, pair["kps_ids"]), pair["src_kps"], pair["trg_kps"], strict=True):
            answer = _answer(asked, pair["src_imsize"][:2], pair["trg_imsize"][:2], source, target)
            distance = math.dist(answer, true)
            right = distance <= 0.1 * max(x1 - x0, y1 - y0)
            hits.append(right)
            dagger.append(right and all(math.dist(answer, p) >= distance for k, p in shown[1].items() if k != id_))
            if any(id_ in group and len(group & shown[1].keys()) >= 2 for group in FEET[category]):
                aware.append(right)
    return {
        "pck": np.mean(hits),
        "keypoints": len(hits),
        "aware": (np.mean(aware), len(aware)),
        "dagger": np.mean(dagger),
    } | {"absent": absent}


def _answer(asked, source_size, target_size, source, target) -> tuple[float, float]:
    """The centre of the target's most similar cell, in its pixels; descriptors are read bilinearly."""
    width, height = source_size
    rows, columns, _ = source.shape
    scale = SIDE / max(width, height)
    x = min(max((asked[0] + 0.5) * round(width * scale) / width / STRIDE - 0.5, 0), columns - 1)
    y = min(max((asked[1] + 0.5) * round(height * scale) / height / STRIDE - 0.5, 0), rows - 1)
    left, top = int(x), int(y)
    right, bottom, across, down = min(left + 1, columns - 1), min(top + 1, rows - 1), x - int(x), y - int(y)
    one = (1 - down) * ((1 - across) * source[top, left] + across * source[top, right])
    one = one + down * ((1 - across) * source[bottom, left] + across * source[bottom, right])
    row, column = np.unravel_index(np.argmax(target @ (one / np.linalg.norm(one))), target.shape[:2])
    width, height = target_size
    scale = SIDE / max(width, height)
    place = [
        (index + 0.5) * STRIDE * side / round(side * scale) - 0.5 for index, side in ((column, width), (row, height))
    ]
    return min(max(place[0], 0), width - 1), min(max(place[1], 0), height - 1)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def _cell(project: Path) -> dict:
    return json.loads((project / f"metrics/smoke/cells/{B}/frozen/{D}/argmax.json").read_text())


def test_a_loop_over_the_stored_features_has_the_same_scores(project, published):
    store = {}
    with h5py.File(project / f"features/{B}/frozen/{D}.h5") as file:
        file.visititems(lambda name, item: store.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    maps = {
        name.removeprefix("features/"): _unit(values.astype(np.float32))
        for name, values in store.items()
        if values.ndim == 3
    }
    found, cell = _scores(published, lambda id_: maps[id_]), _cell(project)
    assert cell["num_keypoints"] == found["keypoints"] == cell["confidence"]["num_there"]
    assert cell["confidence"]["num_absent"] == found["absent"]
    assert cell["overall_keypoint"]["PCK@0.10"]["mean"] == pytest.approx(found["pck"], abs=1e-12)
    assert cell["dagger"]["PCK@0.10"]["mean"] == pytest.approx(found["dagger"], abs=1e-12)
    aware = cell["geometry_aware"]["PCK@0.10"]
    assert (aware["mean"], aware["num_keypoints"]) == (pytest.approx(found["aware"][0], abs=1e-12), found["aware"][1])


def test_a_loop_from_the_images_has_the_same_scores(project, published, smoke):
    """Pillow and timm alone: resized, standardised, padded, encoded; to 0.1 points."""
    from safetensors.torch import load_file

    spec = smoke["backbones"][B]
    net = timm.create_model(spec["model"], num_classes=0, dynamic_img_size=True, **spec["overrides"]).eval()
    tensors = load_file(project / f"data/weights/{B}/frozen.safetensors")
    net.load_state_dict(tensors)
    mean, std = (torch.tensor(net.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    kept: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def features(id_: str) -> np.ndarray:
        if id_ not in kept:
            image = Image.open(published / "JPEGImages" / f"{id_}.jpg").convert("RGB")
            scale = SIDE / max(image.size)
            small = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
            pixels = (torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255 - mean) / std
            rows, columns = (-(-side // STRIDE) for side in pixels.shape[1:])
            padded = torch.zeros(3, rows * STRIDE, columns * STRIDE)
            padded[:, : pixels.shape[1], : pixels.shape[2]] = pixels
            [out] = net.forward_intermediates(padded[None], indices=[spec["layer"]], norm=True, intermediates_only=True)
            kept[id_] = _unit(out[0].permute(1, 2, 0).numpy())
        return kept[id_]

    found, cell = _scores(published, features), _cell(project)
    assert abs(cell["overall_keypoint"]["PCK@0.10"]["mean"] - found["pck"]) < 0.001
    assert abs(cell["geometry_aware"]["PCK@0.10"]["mean"] - found["aware"][0]) < 0.001
    assert abs(cell["dagger"]["PCK@0.10"]["mean"] - found["dagger"]) < 0.001
