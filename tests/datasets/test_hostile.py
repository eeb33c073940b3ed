"""What a hostile tester found: numbers that were wrong without a word, and errors that were none of ours."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image as PillowImage

import semcorr
from semcorr import cli, params, tensors
from semcorr.api import images
from semcorr.artifacts.files import write_json
from semcorr.datasets import ap10k, pfpascal, pfwillow, toy, verify
from semcorr.datasets.base import read_pairs
from semcorr.datasets.decode import decode
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.networks.backbones import build
from semcorr.networks.backbones.checkpoint import read_checkpoint
from semcorr.networks.backbones.weights import get

TINY = {"depth": 3, "embed_dim": 48, "num_heads": 3, "init_values": 1.0}


def _values(smoke: dict) -> dict:
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]
    return values


def _run(*words: str) -> str:
    return cli.run_stage(cli.parser().parse_args(list(words)))


def _willow(root: Path, names: list[str]) -> Path:
    """One sub-set in PF-WILLOW's format."""
    folder = root / "car(S)"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        PillowImage.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{name}.png")
        scipy.io.savemat(folder / f"{name}.mat", {"pts_coord": rng.uniform(1, 39, (2, 10))})
    return root


def test_two_pairs_of_one_id_are_refused(tmp_path):
    root = _willow(tmp_path / "W", ["a", "a-b", "b-a"])
    with pytest.raises(UserError, match=r"have the same id, car\(S\)/a-b-a\. Rename an image"):
        verify.check(verify.recognise(root, "any"), root)
    assert len({pair.id for pair in pfwillow.read(_willow(tmp_path / "V", ["a", "c", "d"])).pairs}) == 6


def test_a_name_that_starts_with_a_dot_is_refused(tmp_path):
    """Stores keep such names for themselves, among them those of mirrored images."""
    whole = pfwillow.read(_willow(tmp_path / "V", ["a", "b"]))
    verify.require_tables(whole)
    images = [replace(image, id=f".{image.id}") for image in whole.images]
    with pytest.raises(UserError, match=r"the name of \.car\(S\)/a starts with a dot\. Rename it"):
        verify.require_tables(replace(whole, images=images))


def test_animals_of_one_name_in_two_families_are_two(tmp_path):
    """AP-10K's pairs are known by their whole paths: six pairs are six."""
    root, families = tmp_path / "ap", ["A", "B", "C"]
    for family in families:
        for folder in ("JPEGImages", "ImageAnnotation"):
            (root / folder / family / "x").mkdir(parents=True)
        PillowImage.new("RGB", (64, 48)).save(root / "JPEGImages" / family / "x/1.jpg")
        values = {"width": 64, "height": 48, "bbox": [3, 4, 40, 30], "keypoints": [5, 6, 2] * 17}
        write_json(root / "ImageAnnotation" / family / "x/1.json", values)
    (root / "PairAnnotation/test_cross_family").mkdir(parents=True)
    for one in families:
        for other in families:
            if one != other:
                paths = {
                    key: f"ImageAnnotation/{family}/x/1.json"
                    for key, family in (("src_json_path", one), ("trg_json_path", other))
                }
                write_json(root / "PairAnnotation/test_cross_family" / f"{one}{other}:all.json", paths)
    assert len({pair.id for pair in ap10k.read(root, "test", "cross_family").pairs}) == 6


def test_no_pairs_and_pairs_of_one_image(tmp_path):
    root = _willow(tmp_path / "W", ["a"])
    with pytest.raises(UserError, match="no pair is left to match"):
        verify.check(verify.recognise(root, "any"), root)
    root = _willow(tmp_path / "V", ["a", "b"])
    points = {name: scipy.io.loadmat(root / f"car(S)/{name}.mat")["pts_coord"].ravel() for name in "ab"}
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["car(S)/a.png", "car(S)/a.png", *points["a"], *points["a"]])
    with pytest.raises(UserError, match=r"pairs car\(S\)/a with itself"):
        pfwillow.read(root, tmp_path / "list.csv")


def test_what_willow_left_out_is_counted(tmp_path):
    root = _willow(tmp_path / "W", ["a", "b"])
    lonely = _willow(tmp_path / "V", ["c"]) / "car(S)"
    lonely.rename(root / "duck(S)")
    assert pfwillow.read(root).left_out == {"images in no pair": 1}
    (root / "car(S)/a.PNG").write_bytes((root / "car(S)/b.png").read_bytes())
    with pytest.raises(UserError, match="suffix in upper and in lower case"):
        pfwillow.read(root)


def test_two_datasets_in_one_folder_are_not_guessed(tmp_path):
    for name in ("A", "B"):
        toy.write_pfwillow(tmp_path / "both" / name, 3, {"all": 2})
    with pytest.raises(UserError, match=r"holds several datasets: A, B\. Give one"):
        verify.check(verify.recognise(tmp_path / "both", "any"), tmp_path / "both")


@pytest.mark.parametrize("number", ["8.9", "inf", "1e999"])
def test_a_class_that_is_none(number):
    with pytest.raises(UserError, match="not source image, target image, class 1 to 20"):
        pfpascal._parse(["a.jpg", "b.jpg", number], "list.csv:2")


def test_pictures_with_more_than_eight_bits(tmp_path):
    grey = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    beyond = grey.copy()
    beyond[0, 0] = 1.02
    PillowImage.fromarray(beyond).save(tmp_path / "float.tiff")
    PillowImage.fromarray((255 * grey).astype(np.int32)).save(tmp_path / "int.tiff")
    PillowImage.fromarray((65535 * grey).astype(np.uint16)).save(tmp_path / "clear.png", transparency=65535)
    for name in ("float.tiff", "int.tiff"):
        shown = np.asarray(decode(tmp_path / name, upright=False))[..., 0] / 255
        np.testing.assert_allclose(shown[1:], grey[1:], atol=1.1 / 255)
    assert (np.asarray(decode(tmp_path / "clear.png", upright=False))[-1, -1] == 255).all()
    PillowImage.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "all.png", transparency=1000)
    assert (np.asarray(decode(tmp_path / "all.png", upright=False)) == 255).all()


def test_stale_results_are_not_shown_as_current(smoke, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = _values(smoke)
    values["grid"] |= {"tunings": [], "weights": ["frozen"], "trunks": [], "train": None, "validate": None}
    write_json(Path("params.yaml"), values)
    for job in graph.Graph(params.load()).jobs():
        _run(job.stage, *job.cell.values())
    cells = [f"dinov2_tiny/frozen/toy_willow/{rule}" for rule in ("argmax", "softargmax")]
    cli.main(["compare", *cells])
    cli.main(["table"])
    for format_, suffix in (("markdown", "md"), ("latex", "tex")):
        capsys.readouterr()
        cli.main(["table", "--format", format_])
        assert capsys.readouterr().out == Path(f"metrics/smoke/summary.{suffix}").read_text()
    values["rules"]["softargmax"]["temperature"] = 4.0
    values["backbones"]["dinov2_tiny"]["image_size"] = 56
    write_json(Path("params.yaml"), values)
    for words in (["compare", *cells], ["table"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        answer = capsys.readouterr()
        assert "made under other parameters" in answer.err
        assert answer.out == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"debias": {"components": 48}}, r"debias\.components: 48 would leave nothing of 48 channels"),
        ({"model": "eva02_tiny_patch14_224", "norm": True, "overrides": {"depth": 3}}, "has no final norm"),
        ({"overrides": TINY | {"in_chans": 4}}, "gives no features with overrides"),
        ({"overrides": TINY | {"patch_size": [14, 7]}}, "do not cover 518 x 518 pixels evenly"),
        ({"model": "convnext_atto", "facet": "key", "norm": False, "overrides": {}}, "facet: key cannot be read"),
        ({"family": "sam", "model": "vit_b", "norm": False, "overrides": {"img_size": 100}}, "is not a multiple"),
        ({"family": "sam", "model": "vit_b", "norm": False, "overrides": {"in_chans": 1, "depth": 3}}, "no features"),
        ({"family": "sam", "model": "vit_b", "norm": False, "overrides": {"mlp_ratio": -1}}, "cannot be built"),
    ],
)
def test_networks_that_cannot_work_are_found_by_validate(smoke, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    values = _values(smoke)
    values["grid"] |= {"tunings": [], "weights": ["frozen"], "trunks": [], "train": None, "validate": None}
    values["backbones"] = {"dinov2_tiny": values["backbones"]["dinov2_tiny"] | change}
    write_json(Path("params.yaml"), values)
    with pytest.raises(UserError, match=said):
        _run("validate")


def test_one_set_of_tensors_beside_another_with_a_number_in_it(tmp_path):
    tensors = {"a": torch.zeros(2), "b": torch.ones(2)}
    torch.save({"model": {**tensors, "version": 1}, "model_ema": tensors}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="several sets of tensors: model, model_ema"):
        read_checkpoint(tmp_path / "w.pth")
    itself: dict = {}
    itself["model"] = itself
    for values, said in (
        ({0: torch.zeros(1)}, "0 is a Tensor, expected a tensor with a name"),
        (itself, "holds a dict"),
    ):
        torch.save(values, tmp_path / "w.pth")
        with pytest.raises(UserError, match=said):
            read_checkpoint(tmp_path / "w.pth")


def test_tensors_of_odd_kinds(smoke, tmp_path):
    spec = params.validate(smoke, "smoke").backbones["dinov2_tiny"]
    state = build(spec).net.state_dict()
    source = params.FileWeights(kind="file", path=str(tmp_path / "w.pth"), sha256=None)
    for values, said in (
        (state | {"norm.bias": state["norm.bias"].to_sparse()}, "norm.bias is torch.sparse_coo"),
        ({"mask_token": torch.zeros(1), "register_tokens": torch.zeros(1)}, "unexpected mask_token"),
        ({"storage_tokens": torch.zeros(1), "blocks.0.attn.qkv.bias": torch.zeros(2)}, "unexpected storage_tokens"),
    ):
        torch.save(values, tmp_path / "w.pth")
        with pytest.raises(UserError, match=said):
            get(spec, source, tmp_path)


def test_a_safetensors_header_is_no_web_page(tmp_path):
    """A header of 0x3c20 bytes begins with a blank and a `<`."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(0x3C20).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert read_checkpoint(tmp_path / "w.safetensors")["a"].item() == 0


def test_what_is_too_small_for_float16():
    small = torch.full((2, 3, 4), 3e-8)
    with pytest.raises(UserError, match="too small for float16"):
        tensors.rounded(small, "float16", "x", str)
    assert torch.equal(tensors.rounded(small, "float32", "x", str), small)
    assert torch.equal(tensors.rounded(torch.zeros(2, 4), "float16", "x", str).float(), torch.zeros(2, 4))


def test_a_network_with_its_own_mean_and_deviation(smoke, tmp_path, monkeypatch):
    """Given ImageNet's by a dataset of the API, it computes what the pipeline stores."""
    monkeypatch.chdir(tmp_path)
    values = _values(smoke)
    values["backbones"]["dinov2_tiny"] |= {"model": "vit_tiny_patch16_224", "overrides": {"depth": 3}, "norm": False}
    values["backbones"]["dinov2_tiny"]["precision"] = "float32"
    write_json(Path("params.yaml"), values)
    _run("weights", "dinov2_tiny", "frozen")
    matcher = images.Matcher()
    assert matcher.network.mean == (0.5, 0.5, 0.5)
    toy.write_pfwillow(Path("W"), 3, {"all": 2})
    item = semcorr.PFWillowDataset("W", long_side=112)[0]
    backbone = semcorr.UnifiedBackbone.from_params("dinov2_tiny", device="cpu")
    found = torch.nn.functional.normalize(backbone.extract_features(item["src_img"][None])[0], dim=-1)
    stored, _ = matcher.features(images.open_image(f"W/{item['src_id']}.png"))
    torch.testing.assert_close(found[: stored.shape[0], : stored.shape[1]], stored, rtol=0, atol=1e-4)


def test_a_changed_network_gives_changed_answers():
    weights = {"kind": "random", "seed": 1}
    model = "vit_small_patch14_dinov2"
    backbone = semcorr.UnifiedBackbone("dinov2", weights=weights, model=model, overrides=TINY, device="cpu")
    matcher, shown = semcorr.CorrespondenceMatcher(backbone), torch.randn(3, 56, 70)
    other, points = torch.randn(3, 56, 70), torch.rand(20, 2) * 50
    before = matcher.match(shown, other, points)
    with torch.no_grad():
        for tensor in backbone.network.parameters():
            tensor.add_(torch.randn_like(tensor))
    after = matcher.match(shown, other, points)
    assert not torch.equal(after, before)
    assert torch.equal(semcorr.CorrespondenceMatcher(backbone).match(shown, other, points), after)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rules", "softargmax", "temperature"), 1e-50),
        (("rules", "softargmax", "temperature"), float("inf")),
        (("rules", "softargmax", "window"), 10**23 + 1),
        (("evaluate", "seed"), -1),
        (("tunings", "last1", "seed"), -1),
        (("backbones", "dinov2_tiny", "weights", "seed"), 10**30),
        (("threads",), 10**9),
    ],
)
def test_numbers_that_nothing_can_be_computed_with(smoke, path, value):
    values = _values(smoke)
    place = values
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(UserError, match=r"\.".join(path)):
        params.validate(values, "x")


def test_the_api_refuses_nonsense(tmp_path):
    toy.write_pfwillow(tmp_path / "W", 3, {"all": 2})
    for size in (0, -5, 1.5):
        with pytest.raises(UserError, match="long_side"):
            semcorr.PFWillowDataset(tmp_path / "W", long_side=size)
    for arguments in ({"thresholds": [float("nan")]}, {"thresholds": [-1]}):
        with pytest.raises(ValueError, match="thresholds are"):
            semcorr.UnifiedEvaluator([], **arguments)
    for arguments in ({"reference": "foo"}, {"bootstrap": 0}):
        with pytest.raises(UserError, match="allowed: "):
            semcorr.UnifiedEvaluator([], **arguments)
    masked = np.ma.masked_array(np.zeros((2, 2)), mask=[[1, 1], [0, 0]])
    with pytest.raises(ValueError, match="masked"):
        semcorr.compute_pck(masked, np.zeros((2, 2)), reference=1)


def test_an_anchor_carries_a_change_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["preset", "smoke", "--set", "datasets.toy_spair_trn.limit=2"])
    assert "datasets.toy_spair_val.limit=2" in capsys.readouterr().out
    (tmp_path / "loop.yaml").write_text("preset: &a [*a]\n")
    (tmp_path / "wide.yaml").write_bytes("preset: x\n".encode("utf-16"))
    for name, said in (("loop.yaml", "contains itself"), ("wide.yaml", "save it as UTF-8")):
        with pytest.raises(SystemExit):
            cli.main(["preset", name, "--set", "preset=y"])
        assert said in capsys.readouterr().err


def test_a_file_that_is_no_store_is_not_to_be_deleted(smoke, tmp_path, monkeypatch):
    from semcorr.artifacts.store import describe

    monkeypatch.chdir(tmp_path)
    write_json(Path("params.yaml"), _values(smoke))
    _run("fetch", "toy_willow")
    for path in ("data/toy_willow/pairs.parquet", "params.yaml", "data"):
        with pytest.raises(UserError, match="not a feature store") as raised:
            describe(Path(path))
        assert "Delete" not in str(raised.value)
    assert read_pairs(Path("data/toy_willow/pairs.parquet"))


def test_two_blank_images(smoke, tmp_path, monkeypatch):
    """Nothing to tell apart, nothing to colour: a picture all the same."""
    monkeypatch.chdir(tmp_path)
    write_json(Path("params.yaml"), _values(smoke))
    _run("weights", "dinov2_tiny", "frozen")
    blank = PillowImage.new("RGB", (16, 16))
    matcher = images.Matcher(image_size=16)
    assert images.match_images(blank, blank, grid=1, matcher=matcher).dense().size
