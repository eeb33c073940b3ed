"""The public API: the classes by themselves, and against the pipeline on the same pairs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import semcorr
from semcorr import cli, params
from semcorr.artifacts.files import write_json
from semcorr.datasets import toy
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.networks.backbones import save
from semcorr.params import read_yaml

ROOT = Path(__file__).parents[2]
TINY = {"depth": 3, "embed_dim": 48, "num_heads": 3, "init_values": 1.0}


@pytest.fixture(scope="module")
def spair_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("api") / "SPair-71k"
    toy.write_spair(root, seed=5, images={"trn": 2, "val": 2, "test": 2})
    return root


@pytest.fixture(scope="module")
def tiny():
    return semcorr.UnifiedBackbone(
        "dinov2",
        weights={"kind": "random", "seed": 1},
        model="vit_small_patch14_dinov2",
        overrides=TINY,
        device="cpu",
    )


def test_names_are_importable_without_torch_until_used():
    code = "import sys, semcorr; assert set(semcorr.__all__) <= set(dir(semcorr)); assert 'torch' not in sys.modules; "
    code += "[getattr(semcorr, name) for name in semcorr.__all__]; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nonsense"):
        semcorr.nonsense  # noqa: B018


def test_spair_items(spair_root):
    dataset = semcorr.SPairDataset(spair_root.parent, "test", "small", long_side=100, load_segmentation=True)
    large = semcorr.SPairDataset(spair_root, split="train", long_side=100, normalize=False)
    assert 0 < len(dataset) < len(semcorr.SPairDataset(spair_root, "test"))
    item = dataset[len(dataset) - 1]
    pair = dataset.pair(len(dataset) - 1)
    values = json.loads((spair_root / "PairAnnotation/test" / f"{item['pair_id']}.json").read_text())
    assert item["category"] == pair.category == values["category"]
    assert item["src_pose"] == values["src_pose"]
    for code in ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror"):
        assert item[code] == values[code]
    for side, theirs in (("src", "src"), ("tgt", "trg")):
        width, height, _ = values[f"{theirs}_imsize"]
        image = item[f"{side}_img"]
        assert image.dtype == torch.float32
        assert max(image.shape[1:]) == 100
        assert item[f"{side}_size"].tolist() == list(image.shape[1:])
        assert item[f"{side}_orig_size"].tolist() == [height, width]
        scale = np.array([image.shape[2] / width, image.shape[1] / height])
        np.testing.assert_allclose(item[f"{side}_scale"], scale, rtol=1e-6)
        points = (np.array(values[f"{theirs}_kps"], float) + 0.5) * scale - 0.5
        np.testing.assert_allclose(item[f"{side}_kps"], points, atol=1e-4)
        assert item[f"{side}_bbox"].tolist() == values[f"{theirs}_bndbox"]
        assert item[f"{side}_mask"].shape == image.shape[1:]
        assert set(item[f"{side}_mask"].unique().tolist()) == {0, 255}
    assert item["valid_mask"].tolist() == [True] * len(values["kps_ids"])
    plain = large[0]["src_img"]
    assert 0 <= plain.min() <= plain.max() <= 1
    standard = semcorr.SPairDataset(spair_root, "train", long_side=100)[0]["src_img"]
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(standard * std + mean, plain, atol=1e-5, rtol=0)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_landmark_stays_on_its_pixel(tmp_path):
    """A white square on black, annotated at its centre, is found at the item's keypoint whatever the size."""
    root = tmp_path / "PF-dataset" / "car(S)"
    root.mkdir(parents=True)
    import scipy.io

    for name, (height, width) in (("a", (300, 200)), ("b", (211, 400))):
        x, y = 0.3 * width, 0.7 * height
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[round(y) - 10 : round(y) + 11, round(x) - 10 : round(x) + 11] = 255
        Image.fromarray(pixels).save(root / f"{name}.png")
        scipy.io.savemat(root / f"{name}.mat", {"pts_coord": np.tile([[round(x)], [round(y)]], 10).astype(float)})
    for long_side in (97, 210, 640):
        for item in semcorr.PFWillowDataset(tmp_path, long_side=long_side, normalize=False):
            for side in ("src", "tgt"):
                weight = item[f"{side}_img"].mean(0)
                rows, columns = (torch.arange(size, dtype=torch.float32) for size in weight.shape)
                centre = torch.stack([(weight.sum(0) * columns).sum(), (weight.sum(1) * rows).sum()]) / weight.sum()
                torch.testing.assert_close(item[f"{side}_kps"][0], centre, atol=0.03, rtol=0)


def test_wrong_arguments(spair_root, tmp_path):
    with pytest.raises(UserError, match="split: 'tset'; allowed: trn, val, test"):
        semcorr.SPairDataset(spair_root, "tset")
    for wrong in (lambda: semcorr.PFPascalDataset(tmp_path, "tset"), lambda: semcorr.AP10KDataset(tmp_path, "tset")):
        with pytest.raises(UserError, match="split: 'tset'; allowed: trn, val, test"):
            wrong()
    with pytest.raises(UserError, match="subset: 'x'; allowed: intra_species, cross_species, cross_family"):
        semcorr.AP10KDataset(tmp_path, "test", "x")
    with pytest.raises(UserError, match="resample: 'lanczos'; allowed: bicubic, bilinear"):
        semcorr.SPairDataset(spair_root, "test", resample="lanczos")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        semcorr.SPairDataset("nowhere")
    with pytest.raises(UserError, match="nothing in it is in the format 'pfwillow'"):
        semcorr.PFWillowDataset(tmp_path)
    with pytest.raises(UserError, match="no backbone 'clip'; allowed: dinov2, dinov3, sam"):
        semcorr.UnifiedBackbone("clip")
    with pytest.raises(UserError, match="say where the tensors of vit_small_patch14_dinov2 come from"):
        semcorr.UnifiedBackbone("dinov2", model="vit_small_patch14_dinov2")
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        semcorr.UnifiedBackbone("dinov2", weights="none.pth")
    with pytest.raises(UserError, match="weights: Input tag 'hub'"):
        semcorr.UnifiedBackbone("dinov2", weights={"kind": "hub"})


def test_official_tensors_that_cannot_be_had_are_an_error(monkeypatch):
    """No network: nothing else is taken instead."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"dinov2_vitb14_pretrain\.pth could not be downloaded: .* Or put the file at"):
        semcorr.UnifiedBackbone("dinov2")


@pytest.mark.parametrize("size", [(1, 1), (14, 14), (50, 33), (112, 70), (3, 200)])
def test_features_of_any_size(tiny, size):
    features = tiny.extract_features(torch.randn(2, 3, *size))
    assert features.shape == (2, *tiny.grid(size).shape, 48)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    for wrong in (torch.randn(3, *size), torch.randn(1, 1, *size), torch.randn(1, 3, 0, 4)):
        with pytest.raises(ValueError, match="expected"):
            tiny.extract_features(wrong)


def test_an_image_larger_than_sams_canvas():
    overrides = {"img_size": 128, "embed_dim": 48, "depth": 2, "num_heads": 3, "out_chans": 32, "window_size": 4}
    overrides |= {"global_attn_indexes": [1]}
    sam = semcorr.UnifiedBackbone("sam", weights={"kind": "random", "seed": 0}, overrides=overrides, device="cpu")
    assert sam.extract_features(torch.randn(1, 3, 256, 160)).shape == (1, 8, 5, 48)
    assert sam.extract_features(torch.randn(1, 3, 64, 128)).shape == (1, 4, 8, 48)
    matched = semcorr.CorrespondenceMatcher(sam).match(
        torch.randn(3, 256, 160), torch.randn(3, 500, 300), np.array([[5.0, 200.0], [159.0, 255.0]])
    )
    assert matched.shape == (2, 2)
    assert (matched < torch.tensor([300, 500])).all()


@pytest.mark.parametrize("soft", [False, True])
def test_an_image_matches_itself(tiny, soft):
    """Every cell's centre finds itself: to a rounding by argmax, within a cell by soft-argmax."""
    image = torch.randn(3, 84, 140, generator=torch.Generator().manual_seed(0))
    ys, xs = torch.meshgrid(torch.arange(6) * 14 + 6.5, torch.arange(10) * 14 + 6.5, indexing="ij")
    points = torch.stack([xs.flatten(), ys.flatten()], dim=1)
    matcher = semcorr.CorrespondenceMatcher(tiny, use_soft_argmax=soft, temperature=0.001)
    found = matcher.match(image, image, points)
    torch.testing.assert_close(found, points, atol=7.0 if soft else 1e-4, rtol=0)
    assert matcher.match(image, image, points[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match="outside the source image of 140 x 84"):
        matcher.match(image, image, np.array([[200.0, 3.0]]))
    with pytest.raises(UserError, match="window"):
        semcorr.CorrespondenceMatcher(tiny, use_soft_argmax=True, window=4)


def test_each_image_is_encoded_once(tiny, monkeypatch):
    seen = []
    extract = tiny.extract_features
    monkeypatch.setattr(tiny, "extract_features", lambda image: (seen.append(image.shape), extract(image))[1])
    images = [torch.randn(3, 28, 28) for _ in range(4)]
    matcher = semcorr.CorrespondenceMatcher(tiny)
    for source in images:
        for target in images:
            matcher.match(source, target, torch.tensor([[4.0, 4.0]]))
    assert len(seen) == 4


points = st.lists(st.tuples(st.floats(0, 300), st.floats(0, 300)), min_size=1, max_size=9)


@given(points, st.integers(0, 99), st.floats(1, 400), st.floats(1, 400))
def test_compute_pck_against_its_definition(true, seed, height, width):
    true = np.array(true)
    predicted = true + np.random.default_rng(seed).normal(0, 20, true.shape)
    found = semcorr.compute_pck(torch.tensor(predicted), torch.tensor(true), image_size=(height, width))
    for threshold in (0.05, 0.10, 0.15, 0.20):
        mask, value = found[f"PCK@{threshold:.2f}"]
        expected = [
            np.sqrt((p[0] - t[0]) ** 2 + (p[1] - t[1]) ** 2) <= threshold * max(height, width)
            for p, t in zip(predicted, true, strict=True)
        ]
        assert mask.tolist() == expected
        assert value == pytest.approx(np.mean(expected))


def test_compute_pck_by_hand():
    predicted, true = np.array([[10.0, 0.0], [0.0, 10.1]]), np.zeros((2, 2))
    mask, value = semcorr.compute_pck(predicted, true, image_size=(9999, 9999), bbox_size=(40, 100))["PCK@0.10"]
    assert mask.tolist() == [True, False]
    assert value == 0.5
    with pytest.raises(ValueError, match="image_size or bbox_size"):
        semcorr.compute_pck(predicted, true)
    with pytest.raises(ValueError, match="not positive"):
        semcorr.compute_pck(predicted, true, bbox_size=(0, 0))
    with pytest.raises(ValueError, match="expected"):
        semcorr.compute_pck(predicted, true[:1], bbox_size=(1, 1))


def test_batches_of_all_sizes_give_the_same_scores(spair_root, tiny):
    dataset = semcorr.SPairDataset(spair_root, "test", long_side=112)
    results = []
    for size in (1, 3):
        loader = torch.utils.data.DataLoader(dataset, batch_size=size, collate_fn=semcorr.collate)
        result = semcorr.UnifiedEvaluator(loader).evaluate(
            semcorr.CorrespondenceMatcher(tiny), "tiny", show_progress=False
        )
        assert result.pop("inference_time_ms") > 0
        results.append(result)
    default = torch.utils.data.DataLoader(dataset, batch_size=1)
    results.append(semcorr.UnifiedEvaluator(default).evaluate(semcorr.CorrespondenceMatcher(tiny), "tiny", None, False))
    results[-1].pop("inference_time_ms")
    assert results[0] == results[1] == results[2]
    result = results[0]
    assert result["name"] == "tiny"
    assert result["num_pairs"] == len(dataset)
    assert result["reference"] == "bbox"
    assert set(result["per_category_keypoint"]) == set(toy.CATEGORIES)
    assert set(result["overall_keypoint"]["PCK@0.10"]) == {"mean", "std", "ci95"}
    some = semcorr.UnifiedEvaluator(loader).evaluate(semcorr.CorrespondenceMatcher(tiny), "x", 4, False)
    assert some["num_pairs"] == 4


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The smoke experiment's first backbone, run stage by stage in a folder: frozen and tuned, both rules."""
    folder = tmp_path_factory.mktemp("pipeline")
    values = read_yaml(ROOT / "workflow/presets/smoke.yaml")
    values["grid"]["backbones"] = ["dinov2_tiny"]
    write_json(folder / "params.yaml", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for job in graph.Graph(params.load()).jobs():
            if job.stage not in ("validate", "report", "headline"):
                cli.run_stage(cli.parser().parse_args([job.stage, *job.cell.values()]))
    return folder


@pytest.mark.parametrize("rule", ["argmax", "softargmax"])
@pytest.mark.parametrize("weights", ["frozen", "last1"])
def test_the_api_agrees_with_the_pipeline(pipeline, monkeypatch, rule, weights):
    """The same pairs, predicted to 1e-3 pixels of the original image, and the same scores."""
    monkeypatch.chdir(pipeline)
    values = params.load()
    checkpoint = None if weights == "frozen" else "checkpoints/dinov2_tiny/last1"
    backbone = semcorr.UnifiedBackbone.from_params("dinov2_tiny", checkpoint, device="cpu")
    root = next((pipeline / "data/sources").glob("toy_pfwillow_*"))
    dataset = semcorr.PFWillowDataset(root, long_side=values.backbones["dinov2_tiny"].image_size)
    soft = values.rules["softargmax"]
    matcher = semcorr.CorrespondenceMatcher(
        backbone, rule == "softargmax", window=soft.window, temperature=soft.temperature
    )
    table = pd.read_parquet(f"matches/dinov2_tiny/{weights}/toy_willow/{rule}.parquet")
    for item in dataset:
        found = matcher.match(item["src_img"], item["tgt_img"], item["src_kps"]).numpy()
        scale = item["tgt_scale"].double().numpy()
        original = (found + 0.5) / scale - 0.5
        rows = table[table["pair"] == item["pair_id"]]
        np.testing.assert_allclose(original, rows[["predicted_x", "predicted_y"]], atol=1e-3)
    loader = torch.utils.data.DataLoader(dataset, collate_fn=semcorr.collate)
    evaluate = values.evaluate
    result = semcorr.UnifiedEvaluator(
        loader, thresholds=evaluate.thresholds, bootstrap=evaluate.bootstrap, seed=evaluate.seed
    ).evaluate(matcher, "x", show_progress=False)
    cell = json.loads(Path(f"metrics/smoke/cells/dinov2_tiny/{weights}/toy_willow/{rule}.json").read_text())
    for average in ("overall_keypoint", "overall_image", "overall_category"):
        assert result[average] == cell[average]
        assert result["references"]["image"][average] == cell["references"]["image"][average]


def test_a_checkpoint_of_other_tensors_is_refused(pipeline, monkeypatch, tmp_path):
    monkeypatch.chdir(pipeline)
    checkpoint = pipeline / "checkpoints/dinov2_tiny/last1"
    settings = {"model": "vit_small_patch14_dinov2", "overrides": TINY, "device": "cpu"}

    def backbone(folder: Path | None, seed: int = 1, **changes: object) -> semcorr.UnifiedBackbone:
        weights = {"kind": "random", "seed": seed}
        return semcorr.UnifiedBackbone("dinov2", True, folder, weights=weights, **{**settings, "norm": True, **changes})

    frozen = semcorr.UnifiedBackbone("dinov2", weights="data/weights/dinov2_tiny/frozen.safetensors", **settings)
    tuned = backbone(checkpoint)
    image = torch.randn(1, 3, 56, 56)
    assert not torch.allclose(frozen.extract_features(image), tuned.extract_features(image), atol=1e-2)
    for arguments, message in (
        ((checkpoint, 2), r"best\.safetensors: was tuned from other tensors"),
        ((None,), "finetune_choice needs checkpoint_dir"),
        ((tmp_path,), r"best\.safetensors: no such checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            backbone(*arguments)
    with pytest.raises(UserError, match="was tuned for norm True, this backbone has False"):
        backbone(checkpoint, norm=False)
    with pytest.raises(UserError, match="was tuned for layer 2, this backbone has 1"):
        backbone(checkpoint, layer=1)
    save(tmp_path / "best.safetensors", {"a": torch.zeros(1)}, {"fingerprint": "x"})
    with pytest.raises(UserError, match=r"was tuned from other tensors \(it does not say which"):
        backbone(tmp_path)


@pytest.mark.parametrize("preset", ["spair71k", "strong"])
def test_the_official_networks_are_the_presets(preset):
    """UnifiedBackbone takes its tensors from where the presets do."""
    from semcorr.api.backbone import OFFICIAL

    backbones = read_yaml(ROOT / "workflow/presets" / f"{preset}.yaml")["backbones"]
    for choice, official in OFFICIAL.items():
        spec = next(entry for name, entry in backbones.items() if name.startswith(choice))
        assert {key: spec[key] for key in official} == official


def test_compute_pck_takes_no_thresholds_for_a_size():
    predicted, true = np.array([[10.0, 0.0], [0.0, 10.1]]), np.zeros((2, 2))
    by_reference = semcorr.compute_pck(predicted, true, reference=100.0, thresholds=[0.1])
    assert by_reference["PCK@0.10"][1] == 0.5
    assert semcorr.compute_pck(predicted, true, (50, 100), None, [0.1])["PCK@0.10"][1] == 0.5
    for size in (100.0, [0.05, 0.1, 0.15, 0.2], (100,), (100, -1), (100, float("nan")), "ab"):
        for name in ("image_size", "bbox_size"):
            with pytest.raises(ValueError, match=f"{name} is "):
                semcorr.compute_pck(predicted, true, **{name: size})
    with pytest.raises(ValueError, match="image_size is 100"):
        semcorr.compute_pck(predicted, true, 100.0, [0.05, 0.1])
    with pytest.raises(ValueError, match="less than a pixel; thresholds are given as thresholds="):
        semcorr.compute_pck(predicted, true, (100, 100), [0.05, 0.1])
    for reference in (0, -1.0, float("nan"), (1, 2)):
        with pytest.raises(ValueError, match="reference is "):
            semcorr.compute_pck(predicted, true, reference=reference)
    with pytest.raises(ValueError, match="not both"):
        semcorr.compute_pck(predicted, true, (100, 100), reference=100)
    with pytest.raises(ValueError, match="thresholds are"):
        semcorr.compute_pck(predicted, true, (100, 100), thresholds=[0.1, -0.1])


def test_points_that_are_no_numbers_are_no_answer(spair_root, tiny):
    true = np.zeros((2, 2))
    for name in ("pred_kps", "gt_kps"):
        points = {"pred_kps": true, "gt_kps": true} | {name: np.array([[0.0, np.nan], [0.0, 0.0]])}
        with pytest.raises(ValueError, match=f"{name} holds NaN"):
            semcorr.compute_pck(**points, reference=1)
    dataset = semcorr.SPairDataset(spair_root, "test", long_side=112)
    loader = torch.utils.data.DataLoader(dataset, batch_size=1)

    class Lost(semcorr.CorrespondenceMatcher):
        def match(self, source, target, points):
            return torch.full(points.shape, float("nan"))

    class One(semcorr.CorrespondenceMatcher):
        def match(self, source, target, points):
            return points[:1]

    for kind, said in ((Lost, "a predicted or true keypoint is not finite"), (One, r"predicted points are \(1, 2\)")):
        with pytest.raises(ValueError, match=said):
            semcorr.UnifiedEvaluator(loader).evaluate(kind(tiny), "x", show_progress=False)


def test_the_library_leaves_its_host_as_it_found_it(pipeline, monkeypatch):
    """Random state, threads, deterministic algorithms, and loggers' levels, whatever is built and matched."""
    import logging
    import random

    monkeypatch.chdir(pipeline)

    def state() -> tuple:
        loggers = {name: logging.getLogger(name).level for name in ("", "pooch", "PIL", "semcorr")}
        deterministic = torch.are_deterministic_algorithms_enabled()
        dtype, filters = torch.get_default_dtype(), list(__import__("warnings").filters)
        return torch.get_num_threads(), deterministic, dtype, loggers, filters, torch.is_grad_enabled()

    before = torch.get_num_threads()
    torch.set_num_threads(3)  # params.yaml says 1
    try:
        as_found, drawn = state(), []
        for seed in (999, 5):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            expected = (torch.rand(1).item(), np.random.rand(), random.random())
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            backbone = semcorr.UnifiedBackbone.from_params("dinov2_tiny", "checkpoints/dinov2_tiny/last1", device="cpu")
            semcorr.CorrespondenceMatcher(backbone).match(*[torch.randn(3, 56, 56)] * 2, [[1.0, 2.0]])
            torch.manual_seed(seed)
            picture = Image.new("RGB", (30, 20), "red")
            semcorr.match_images(picture, picture, [(3, 4)], weights="last1")
            found = (torch.rand(1).item(), np.random.rand(), random.random())
            assert found == expected
            drawn.append(found)
        assert drawn[0] != drawn[1]
        assert state() == as_found
    finally:
        torch.set_num_threads(before)


def test_building_a_network_draws_nothing(tiny):
    torch.manual_seed(999)
    expected = torch.rand(1)
    torch.manual_seed(999)
    random = {"kind": "random", "seed": 1}
    again = semcorr.UnifiedBackbone("dinov2", weights=random, model=tiny.spec.model, overrides=TINY, device="cpu")
    assert torch.equal(torch.rand(1), expected)
    for one, other in zip(again.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(one, other)
