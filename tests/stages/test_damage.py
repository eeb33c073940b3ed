"""Damaged and foreign files: one line that says what is wrong, where, and what to do. sweep.py does it at length."""

import errno
import fcntl
import gzip
import json
import os
import random
import shutil
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from conftest import setting, small
from PIL import Image as PillowImage
from safetensors.torch import save_file

import semcorr
from semcorr import cli, params
from semcorr.api import images
from semcorr.artifacts import files, store
from semcorr.artifacts.files import write_json
from semcorr.datasets import pfwillow, sources, spair, toy, verify
from semcorr.datasets.annotations import read_mat
from semcorr.engine import graph
from semcorr.engine.at_work import at_work
from semcorr.errors import UserError
from semcorr.networks import architectures
from semcorr.networks.backbones import build
from semcorr.networks.backbones.checkpoint import read_checkpoint
from semcorr.networks.backbones.weights import get


@pytest.fixture
def willow(tmp_path) -> Path:
    toy.write_pfwillow(tmp_path / "W", seed=3, images={"all": 2})
    return tmp_path / "W"


@pytest.fixture
def pairs(tmp_path) -> Path:
    toy.write_spair(tmp_path / "S", seed=3, images={"trn": 2, "val": 2, "test": 2})
    return tmp_path / "S"


def _check(root: Path) -> list[str]:
    return verify.check(verify.recognise(root, "any"), root)


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_mat_file_cut_or_with_a_bit_flipped(tmp_path):
    """Compressed, as the real ones are: the same points, or one line; never others."""
    path, points = tmp_path / "a.mat", np.random.default_rng(0).uniform(0, 99, (2, 10))
    scipy.io.savemat(path, {"pts_coord": points}, do_compression=True)
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content))]
    damaged += [_flipped(content, bit) for bit in range(0, 8 * len(content), 5)] + [bytes(200), bytes(len(content))]
    refused = 0
    for one in damaged:
        path.write_bytes(one)
        try:
            [found] = read_mat(path, "pts_coord")
        except UserError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, points)
    assert refused > len(content)  # every cut, and more


JSON = {
    "a size that is infinite": ('"image_height": ', '"image_height": Infinity, "x": '),
    "a size beyond all floats": ('"image_height": ', '"image_height": 1e999, "x": '),
    "a number for a list": ('"src_kps": ', '"src_kps": 7, "x": '),
    "a list for a number": ('"mirror": ', '"mirror": [1], "x": '),
    "a text for a list": ('"src_bndbox": ', '"src_bndbox": "abcd", "x": '),
    "an infinite box": ('"src_bndbox": ', '"src_bndbox": [0, 0, Infinity, 9], "x": '),
    "a code that is none": ('"viewpoint_variation": ', '"viewpoint_variation": 300, "x": '),
    "a fraction for a code": ('"occlusion": ', '"occlusion": 1.5, "x": '),
    "nothing for a name": ('"src_imname": ', '"src_imname": null, "x": '),
    "lists for keypoints' numbers": ('"kps_ids": ', '"kps_ids": [[1], [2]], "x": '),
    "half a letter in a keypoint's number": (
        '"kps_ids": ',
        '"kps_ids": ["\\ud800"], "src_kps": [[1, 1]], "trg_kps": [[1, 1]], "x": ',
    ),
}


@pytest.mark.parametrize("case", JSON)
def test_annotations_that_lie(pairs, case, capsys):
    old, new = JSON[case]
    files_ = sorted(pairs.rglob("*.json"))
    changed = 0
    for path in files_:
        text = path.read_text()
        if old in text:
            for name in ("src_kps", "trg_kps", "kps_ids"):
                if f'"{name}": ' in new:
                    text = text.replace(f'"{name}": ', f'"old_{name}": ', 1) if old != f'"{name}": ' else text
            path.write_text(text.replace(old, new, 1))
            changed += 1
            break
    assert changed
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(pairs)])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "Traceback" not in line


def _zip(folder: Path, path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for one in sorted(folder.rglob("*.*")):
            file.write(one, one.relative_to(folder.parent))
    return path.read_bytes()


def _patched(content: bytes, offset: int, value: int) -> bytes:
    """A field of every member's local and central header set to a value."""
    changed = bytearray(content)
    for magic, place in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        at = changed.find(magic)
        while at >= 0:
            changed[at + place : at + place + 2] = struct.pack("<H", value)
            at = changed.find(magic, at + 4)
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [(8, 9, "re-pack with plain Deflate"), (8, 93, "re-pack"), (6, 1, "is encrypted. Remove the password")],
)
def test_zip_archives_that_cannot_be_read(willow, tmp_path, monkeypatch, offset, value, said):
    monkeypatch.chdir(tmp_path)
    Path("a.zip").write_bytes(_patched(_zip(willow, tmp_path / "whole.zip"), offset, value))
    with pytest.raises(UserError, match=said):
        sources.open_path(Path("a.zip"))
    assert not list(Path("data/sources").glob("unpacked*"))


def test_a_zip_archive_of_windows(willow, tmp_path, monkeypatch):
    """Backslashes part folders, after names were checked: nothing is written outside."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w") as file:
        for one in sorted(willow.rglob("*.*")):
            info = zipfile.ZipInfo("x")
            info.filename = str(one.relative_to(tmp_path)).replace("/", "\\")
            file.writestr(info, one.read_bytes())
    found = pfwillow.read(sources.root_of(sources.open_path(Path("a.zip")), "pfwillow"))
    assert found.pairs == pfwillow.read(willow).pairs
    with zipfile.ZipFile("b.zip", "w") as file:
        info = zipfile.ZipInfo("x")
        info.filename = "W\\..\\..\\..\\outside"
        file.writestr(info, b"x")
    with pytest.raises(UserError, match="unsafe archive"):
        sources.open_path(Path("b.zip"))


def test_images_of_other_suffixes_and_sizes(willow, pairs, tmp_path, monkeypatch):
    """.PNG and .JPG are read; an image over Pillow's limit is told as such."""
    before = pfwillow.read(willow), spair.read(pairs, "test", "large")
    for path in [*willow.rglob("*.png"), *pairs.rglob("*.jpg"), *pairs.rglob("Segmentation/*/*.png")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    assert pfwillow.read(willow).pairs == before[0].pairs
    after = spair.read(pairs, "test", "large")
    assert after.pairs == before[1].pairs
    assert {image.file.rpartition(".")[2] for image in after.images} == {"JPG"}
    assert _check(willow)
    assert any(" masks" in line and ", 0 masks" not in line for line in _check(pairs))
    assert len(semcorr.SPairDataset(pairs, "test", load_segmentation=True)[0]["src_kps"])
    PillowImage.new("1", (200, 200)).save(tmp_path / "large.png")
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(UserError, match=r"large\.png: has over 0 million pixels\. Shrink it first"):
        images.open_image(tmp_path / "large.png")


def test_a_damaged_avif(tmp_path):
    path = tmp_path / "a.avif"
    PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    content, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        path.write_bytes(_flipped(content[: rng.randrange(len(content) // 2, len(content))], rng.randrange(8 * 200)))
        try:
            images.open_image(path)
        except UserError:
            refused += 1
    assert refused


def test_names_that_are_no_utf_8(willow, tmp_path, capsys, monkeypatch):
    folder = next(path for path in sorted(willow.iterdir()) if path.is_dir())
    stem = os.fsencode(sorted(folder.glob("*.png"))[0])[:-4]
    for suffix in (b".png", b".mat"):
        Path(os.fsdecode(stem + suffix)).rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9" + suffix))
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(willow)])
    assert ended.value.code == 2
    assert "caf\\xe9.png: its name is not UTF-8" in capsys.readouterr().err


def test_what_check_verifies_fetch_can_keep(pairs, smoke, tmp_path, monkeypatch):
    """A name that no index can hold is found before any image is copied."""
    monkeypatch.chdir(tmp_path)
    path = next((pairs / "PairAnnotation/test").glob("*.json"))
    values = json.loads(path.read_text())
    values["kps_ids"][0] = "\ud800"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="does not fit into an index"):
        _check(pairs)
    experiment = json.loads(json.dumps(smoke))
    small(experiment)
    experiment["datasets"]["toy_spair_test"]["sources"] = [{"kind": "path", "path": "S"}]
    write_json(Path("params.yaml"), experiment)
    with pytest.raises(UserError, match="does not fit into an index"):
        cli.run_stage(cli.parser().parse_args(["fetch", "toy_spair_test"]))
    assert not Path("data/toy_spair_test").exists()


@pytest.fixture(scope="module")
def network(smoke):
    spec = params.validate(smoke, "smoke").backbones["dinov2_tiny"]
    return spec, get(spec, spec.weights, Path())[0].net.state_dict()


def _get(network, path: Path) -> str:
    return get(network[0], params.FileWeights(kind="file", path=str(path), sha256=None), path.parent)[1]


FOREIGN = {
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
    "a login page": (b"\n<!DOCTYPE html><html>Please log in", "is a web page"),
    "a web page": (b"<html>", "is a web page"),
    "nothing": (b"", "not a readable checkpoint"),
    "text": (b"hello, world" * 99, "not a readable checkpoint"),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("case", FOREIGN)
def test_what_stands_where_a_checkpoint_should(network, tmp_path, case, suffix):
    content, said = FOREIGN[case]
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        _get(network, tmp_path / f"w.{suffix}")
    assert "could run code" not in str(raised.value)


def test_checkpoints_by_content_and_not_by_suffix(network, tmp_path):
    save_file(network[1], tmp_path / "a.pth")
    torch.save(network[1], tmp_path / "b.safetensors")
    torch.save(network[1], tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.safetensors", "c.pth"):
        assert _get(network, tmp_path / name).startswith(name)


def test_an_old_checkpoint_cut_or_with_a_bit_changed(network, tmp_path):
    """In its head, where the pickle is: one line that is true."""
    torch.save(network[1], tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    content, rng = (tmp_path / "whole.pth").read_bytes(), random.Random(0)
    path, said = tmp_path / "w.pth", []
    for length in range(1, 4000, 97):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="not a readable checkpoint"):
            read_checkpoint(path)
    for _ in range(100):
        path.write_bytes(_flipped(content, rng.randrange(8 * 4000)))
        try:
            _get(network, path)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 50  # the others are bits that say nothing
    assert not [line for line in said if path.name not in line or "\n" in line]


def test_a_new_checkpoint_with_a_bit_changed(network, tmp_path):
    """Among the tensors, where torch compares no checksum."""
    path = tmp_path / "w.pth"
    torch.save(network[1], path)
    content = path.read_bytes()
    path.write_bytes(_flipped(content, 8 * (len(content) // 2)))
    with pytest.raises(UserError, match=r"not a readable checkpoint .*checksum"):
        _get(network, path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "teacher.backbone.", "module.encoder."])
def test_a_prefix_that_all_names_have(network, tmp_path, prefix):
    torch.save({prefix + name: tensor for name, tensor in network[1].items()}, tmp_path / "w.pth")
    assert f'"{prefix}" was removed from its names' in _get(network, tmp_path / "w.pth")
    torch.save({"state_dict": network[1]}, tmp_path / "w.pth")
    assert "removed" not in _get(network, tmp_path / "w.pth")


def test_two_sets_of_tensors(network, tmp_path):
    other = {name: tensor + 1 for name, tensor in network[1].items()}
    for names in (("state_dict", "state_dict_ema"), ("model", "teacher")):
        torch.save({names[0]: network[1], names[1]: other, "epoch": 3}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=f"several sets of tensors: {names[0]}, {names[1]}"):
            _get(network, tmp_path / "w.pth")
    torch.save({"model": network[1], "optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]}}, tmp_path / "w.pth")
    _get(network, tmp_path / "w.pth")


def test_tensors_of_another_network(network, tmp_path):
    """Some of the file's names and some of the network's, side by side."""
    torch.save({f"layer{n}.weight": torch.zeros(n + 1) for n in range(9)}, tmp_path / "w.pth")
    said = r"unexpected layer0\.weight \(1,\); .*and 5 more; missing blocks\.0\.attn\..*and \d+ more"
    with pytest.raises(UserError, match=said) as raised:
        _get(network, tmp_path / "w.pth")
    assert str(raised.value).count("(") < 14


MODELS = {
    "facebook/dinov2-base": "none of this name.*vit_base_patch14_dinov2",
    "vit_base_patch14_dinov2.lvd142m": "none of this name.*no tag behind",
    "hf-hub:timm/vit_tiny_patch16_224": "none of this name",
}


@pytest.mark.parametrize("model", MODELS)
def test_models_that_are_not_possible(smoke, model):
    spec = params.validate(smoke, "smoke").backbones["dinov2_tiny"].model_copy(update={"model": model})
    with pytest.raises(UserError, match=MODELS[model]) as raised, torch.device("meta"):
        build(spec)
    assert model in str(raised.value)


ENCODINGS = {
    "UTF-16": lambda text: text.encode("utf-16"),
    "Latin-1": lambda text: text.replace("# ", "# é ", 1).encode("latin-1"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_params_in_another_encoding(tmp_path, monkeypatch, capsys, encoding):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "workflow/presets/smoke.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_bytes(ENCODINGS[encoding](text))
    with pytest.raises(SystemExit) as ended:
        cli.main(["validate"])
    assert ended.value.code == 2
    assert "save it as UTF-8" in capsys.readouterr().err


def test_params_that_is_a_folder(tmp_path):
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("1.0e-3", "1e-3", r"tunings\.last1\.learning_rate"), ("limit: null", "limit: 010", r"datasets\.\w+\.limit")],
)
def test_what_the_engines_read_differently_is_refused(tmp_path, old, new, key):
    text = (Path(__file__).parents[2] / "workflow/presets/smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=rf"{key}: DVC reads .* Snakemake .*Write numbers as 1\.0e-4"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(smoke, tmp_path, monkeypatch, number):
    """Flock fails for everybody: stages work, by files that stand for locks; engines say what they cannot notice."""

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "x")
    write_json(Path("params.yaml"), {**smoke, "grid": {**smoke["grid"], "backbones": ["dinov2_tiny"]}})
    for words in (
        ["validate"],
        ["fetch", "toy_willow"],
        ["weights", "dinov2_tiny", "frozen"],
        ["extract", "dinov2_tiny", "frozen", "toy_willow"],
    ):
        cli.run_stage(cli.parser().parse_args(words))
    with at_work("snakemake", alone=True):
        pass
    job = graph.Graph(params.load()).job("extract", "dinov2_tiny", "frozen", "toy_willow")
    with (
        files.locked(job.outputs["store"].with_name(".toy_willow.h5.lock")),
        pytest.raises(UserError, match="another process is writing it"),
        store.create(job.outputs["store"], {}, {}, "float16"),
    ):
        pytest.fail("two write one store")


def test_a_user_without_a_name(monkeypatch, tmp_path):
    """Such as containers run under: nothing asks for a name."""
    import getpass

    from semcorr.networks import runtime

    monkeypatch.setattr(getpass, "getuser", lambda: pytest.fail("a name was asked for"))
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    assert runtime.leases([0], 1) == [0]
    runtime._leases.pop().release()
    with pytest.raises(UserError, match="nobody_of_this_name"):
        files.project_path("~nobody_of_this_name/x")


@pytest.fixture(scope="module")
def tiny():
    overrides = {"depth": 3, "embed_dim": 48, "num_heads": 3, "init_values": 1.0}
    weights = {"kind": "random", "seed": 1}
    model = "vit_small_patch14_dinov2"
    return semcorr.UnifiedBackbone("dinov2", weights=weights, model=model, overrides=overrides, device="cpu")


def test_match_takes_arrays_and_other_floats(tiny):
    image = torch.randn(3, 56, 70)
    points = torch.tensor([[10.0, 20.0], [40.0, 30.0]])
    matcher = semcorr.CorrespondenceMatcher(tiny)
    expected = matcher.match(image, image, points)
    assert torch.equal(matcher.match(image.numpy(), image[None].numpy(), points.numpy()), expected)
    assert torch.equal(matcher.match(image.double(), image, points.double().requires_grad_()), expected)
    rounded = image.bfloat16()
    assert torch.equal(
        matcher.match(rounded, rounded, points.bfloat16()), matcher.match(rounded.float(), rounded.float(), points)
    )
    for wrong, said in (
        (torch.zeros(3, 56, 70, dtype=torch.uint8), "src_img is torch.uint8, expected standardised RGB in floats"),
        (torch.zeros(2, 3, 56, 70), r"src_img is \(2, 3, 56, 70\), expected"),
        (torch.zeros(56, 70), r"src_img is \(56, 70\), expected"),
    ):
        with pytest.raises(ValueError, match=said):
            matcher.match(wrong, image, points)


def test_a_pair_without_a_range_is_named(willow, tiny, smoke, tmp_path, monkeypatch):
    """Ten points that are one: by the keypoints' range there is no PCK, and which pair it is, is said."""
    mat = sorted(willow.glob("*/*.mat"))[0]
    scipy.io.savemat(mat, {"pts_coord": np.full((2, 10), 20.0)})
    loader = torch.utils.data.DataLoader(semcorr.PFWillowDataset(willow, long_side=56), collate_fn=semcorr.collate)
    with pytest.raises(ValueError, match=rf"'bbox_kp' is not known .*{mat.stem}"):
        semcorr.UnifiedEvaluator(loader).evaluate(semcorr.CorrespondenceMatcher(tiny), "x", show_progress=False)
    by_image = semcorr.UnifiedEvaluator(loader, reference="image")
    assert by_image.evaluate(semcorr.CorrespondenceMatcher(tiny), "x", show_progress=False)["num_pairs"] == 8
    monkeypatch.chdir(tmp_path)
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]
    values["datasets"]["toy_willow"]["sources"] = [{"kind": "path", "path": "W"}]
    write_json(Path("params.yaml"), values)
    cell = ("dinov2_tiny", "frozen", "toy_willow")
    for words in (["fetch", "toy_willow"], ["weights", *cell[:2]], ["extract", *cell], ["match", *cell, "argmax"]):
        cli.run_stage(cli.parser().parse_args(words))
    with pytest.raises(UserError, match=rf"pair .*{mat.stem}.*: reference 'bbox_kp' is zero"):
        cli.run_stage(cli.parser().parse_args(["evaluate", *cell, "argmax"]))


def test_validate_asks_the_networks_and_remembers(smoke, tmp_path, monkeypatch):
    """A layer, a model, a canvas and a target of LoRA that do not exist; the second time nothing is built."""
    monkeypatch.chdir(tmp_path)

    def run(*change: object) -> str:
        values = json.loads(json.dumps(smoke))
        if change:
            setting(*change)(values)
        write_json(Path("params.yaml"), values)
        return cli.run_stage(cli.parser().parse_args(["validate"]))

    run()
    built = []
    monkeypatch.setattr(architectures, "facts_of", lambda spec: built.append(spec.model))
    run()
    assert built == []
    lora = {"rank": 1, "alpha": 1.0, "targets": ["nothing"]}
    for *change, said in (
        ("backbones", "dinov3_tiny", "layer", 3, r"backbones\.dinov3_tiny\.layer: 3 does not exist; .* blocks 0 to 2"),
        ("backbones", "sam_tiny", "image_size", 129, r"backbones\.sam_tiny\.image_size: 129 is more than .* 128"),
        ("tunings", "last1", "lora", lora, r"tunings\.last1\.lora\.targets: dinov2_tiny has no layer nothing; allowed"),
    ):
        with pytest.raises(UserError, match=said):
            run(*change)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"backbones\.dinov2_tiny: timm cannot build model 'nonsense'"):
        run("backbones", "dinov2_tiny", "model", "nonsense")
    (tmp_path / ".semcorr/architectures.json").write_text("{")
    run()
    assert build(params.load().backbones["sam_tiny"]).depth == 3


@pytest.mark.pipeline
def test_braces_in_a_path(clone):
    """Snakemake takes braces for wildcards; data in such a folder are seen all the same."""
    project = clone("smoke")
    toy.write_pfwillow(project.root / "my {data}", 3, {"all": 2})
    project.edit(setting("datasets", "toy_willow", "sources", [{"kind": "path", "path": "my {data}"}]))
    project.run("snakemake", "--cores", "1", "--", "data/toy_willow/images.parquet")
    assert "Nothing to be done" in project.run("snakemake", "-n", "--", "data/toy_willow/images.parquet")
    image = sorted((project.root / "my {data}").rglob("*.png"))[0]
    image.write_bytes(image.read_bytes() + b" ")
    assert "rule fetch" in project.run("snakemake", "-n", "--", "data/toy_willow/images.parquet")


@pytest.mark.pipeline
def test_snakemake_on_a_file_system_without_locks(clone):
    """The system call fails in every process that Python starts there."""
    project = clone("smoke")
    (project.root / "sitecustomize.py").write_text(
        "import fcntl\ndef no(*_):\n    raise OSError(37, 'No locks available')\nfcntl.flock = fcntl.lockf = no\n"
    )
    command = f'PYTHONPATH="$PWD:$PYTHONPATH" {shutil.which("snakemake", path=Path(sys.executable).parent)}'
    said = project.run("sh", "-c", f"{command} --cores 1 -- data/toy_willow/images.parquet")
    assert "this file system has no locks" in said
    assert (project.root / "data/toy_willow/images.parquet").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_archive_damaged_in_its_middle(willow, tmp_path, monkeypatch, mode):
    """Tarfile takes a damaged header for the end, and would leave out without a word what comes after."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open("whole.tar", "w") as file:
        file.add("W")
    content = Path("whole.tar").read_bytes()
    with tarfile.open("whole.tar") as file:
        headers = [member.offset for member in file]
    damaged = [content[: headers[9]], content[: headers[9] + 100]]  # cut at a header, and in one
    damaged += [_flipped(content, 8 * (offset + 120)) for offset in headers[5:9]]
    for one in damaged:
        Path("a.tar").write_bytes(one if mode == "w" else gzip.compress(one))
        with pytest.raises(UserError, match="damaged or truncated archive"):
            sources.open_path(Path("a.tar"))
