"""Two images of one's own: any format, mode and size; what is matched is known by construction."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file

from semcorr import cli, params
from semcorr.api import images
from semcorr.artifacts.files import write_json
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.networks import published
from semcorr.networks.backbones import build, digest
from semcorr.report import pictures

EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def project(smoke, tmp_path_factory):
    """A folder with params.yaml and the tensors of a tiny network, and nothing else."""
    folder = tmp_path_factory.mktemp("images")
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]
    write_json(folder / "params.yaml", values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.run_stage(cli.parser().parse_args(["weights", "dinov2_tiny", "frozen"]))
    return folder


@pytest.fixture(scope="module")
def matcher(project):
    return images.Matcher(path=project / "params.yaml")


@pytest.fixture(scope="module")
def picture() -> PillowImage.Image:
    """Every patch its own colour, 120 x 90 pixels."""
    rng = np.random.default_rng(0)
    small = PillowImage.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    return small.resize((120, 90), PillowImage.Resampling.NEAREST)


def _half_a_cell(found: images.ImageMatches) -> np.ndarray:
    """Half a cell in pixels, x y: how far an argmax may be from the truth."""
    return np.array(found.source.size) / np.array(found.source_grid.resized_size[::-1]) * found.source_grid.stride / 2


def test_an_image_matches_itself(matcher, picture):
    wanted = [(0, 0), (119, 89), (52, 37), (66, 22)]  # corners and centres of cells of 15 pixels
    found = images.match_images(picture, picture, wanted, matcher=matcher)
    assert (np.abs(found.target_points - wanted) <= _half_a_cell(found) + 1e-6).all()
    assert found.heatmaps().shape == (4, *found.target_features.shape[:2])
    np.testing.assert_allclose(found.heatmaps().max(axis=(1, 2)), found.similarity, atol=1e-5)


def test_all_cells_of_an_image_are_mutual_neighbours_of_themselves(matcher, picture):
    found = images.match_images(picture, picture, matcher=matcher)
    height, width = found.source_grid.shape
    assert len(found.source_points) == height * width
    assert found.source_points.tolist() == found.target_points.tolist()


def test_mutual_neighbours_by_loops(matcher, picture):
    other = picture.transpose(PillowImage.Transpose.ROTATE_180).crop((0, 0, 100, 90))
    found = images.match_images(picture, other, matcher=matcher)
    first, second = (one.flatten(0, 1).double().numpy() for one in (found.source_features, found.target_features))
    similarity = first @ second.T
    expected = set()
    for index, row in enumerate(similarity):
        best = int(np.argmax(row))
        if int(np.argmax(similarity[:, best])) == index:
            expected.add((index, best))

    def numbers(points, grid):
        cells = np.rint(grid.pixels_to_cells(points)).astype(int)
        return (cells[:, 1] * grid.shape[1] + cells[:, 0]).tolist()

    # The last cells of an axis may be cut to the image's edge; these images end on whole cells or close to it.
    pairs = zip(
        numbers(found.source_points, found.source_grid), numbers(found.target_points, found.target_grid), strict=True
    )
    assert set(pairs) == expected
    assert 0 < len(expected) < len(similarity)


def test_grid_points_are_spread_evenly(matcher, picture):
    found = images.match_images(picture, picture, grid=3, matcher=matcher)
    assert found.source_points.tolist() == [[x, y] for y in (14.5, 44.5, 74.5) for x in (19.5, 59.5, 99.5)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(matcher, picture, tmp_path, orientation):
    """A file that is stored turned and says so is the picture it shows, and points are those of what it shows."""
    turns = {
        2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
        3: PillowImage.Transpose.ROTATE_180,
        4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
        5: PillowImage.Transpose.TRANSPOSE,
        6: PillowImage.Transpose.ROTATE_90,
        7: PillowImage.Transpose.TRANSVERSE,
        8: PillowImage.Transpose.ROTATE_270,
    }
    stored = picture.transpose(turns[orientation]) if orientation > 1 else picture
    exif = PillowImage.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    upright = images.open_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(upright), np.asarray(picture))
    found = images.match_images(picture, tmp_path / "turned.png", [(97, 22)], matcher=matcher)
    assert (np.abs(found.target_points - [(97, 22)]) <= _half_a_cell(found) + 1e-6).all()


def test_modes(tmp_path):
    """Each mode shows the colours that it stands for."""
    grey = np.array([[0, 128, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)

    def check(name: str, image: PillowImage.Image) -> None:
        image.save(tmp_path / name)
        shown = np.asarray(images.open_image(tmp_path / name)).astype(int)
        assert np.abs(shown - expected).max() <= 1, name

    plain = PillowImage.fromarray(grey)
    check("grey.png", plain)
    check("grey16.png", PillowImage.fromarray(grey.astype(np.uint16) * 257))
    check("grey16.tiff", PillowImage.fromarray(grey.astype(np.uint16) * 257))
    check("float.tiff", PillowImage.fromarray(grey.astype(np.float32) / 255))
    check("palette.png", plain.convert("P"))
    check("palette.gif", plain)
    check("cmyk.tiff", plain.convert("RGB").convert("CMYK"))
    check("bmp.bmp", plain)
    alpha = PillowImage.fromarray(np.dstack([expected, np.full((1, 3), 255, np.uint8)]))
    check("alpha.png", alpha)
    clear = np.asarray(alpha).copy()
    clear[..., 3] = 0
    PillowImage.fromarray(clear).save(tmp_path / "clear.png")
    assert (np.asarray(images.open_image(tmp_path / "clear.png")) == 255).all()
    bits = PillowImage.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    bits.save(tmp_path / "bits.png")
    assert np.asarray(images.open_image(tmp_path / "bits.png"))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("size", [(1, 1), (10_000, 10), (10, 3_000), (2, 2)])
def test_sizes(matcher, picture, size):
    odd = PillowImage.new("RGB", size, "red")
    corner = (size[0] - 1, size[1] - 1)
    found = images.match_images(odd, picture, [corner], matcher=matcher)
    assert found.target_points.shape == (1, 2)
    back = images.match_images(picture, odd, grid=4, matcher=matcher)
    assert (back.target_points >= 0).all()
    assert (back.target_points <= corner).all()
    for shown in (back.picture(), back.dense(), images.match_images(odd, odd, matcher=matcher).picture()):
        assert max(shown.size) <= 2 * images.SIDE + 10


def test_what_is_wrong(matcher, picture, project, tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no image")
    picture.save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    for name in ("text.jpg", "half.jpg"):
        with pytest.raises(UserError, match=f"{name}: not a readable image"):
            images.match_images(tmp_path / name, picture, matcher=matcher)
    with pytest.raises(UserError, match=r"nope.png: no such file"):
        images.match_images(picture, tmp_path / "nope.png", matcher=matcher)
    for point in [(120, 5), (-1, 5), (5, 89.6), (float("nan"), 5)]:
        with pytest.raises(UserError, match="lies outside the source image: x runs from 0 to 119, y from 0 to 89"):
            images.match_images(picture, picture, [point], matcher=matcher)
    with pytest.raises(UserError, match="not both"):
        images.match_images(picture, picture, [(1, 1)], grid=2, matcher=matcher)
    with pytest.raises(UserError, match="grid: 0"):
        images.match_images(picture, picture, grid=0, matcher=matcher)
    with pytest.raises(UserError, match=r"shape \(0,\), expected \(N, 2\)"):
        images.match_images(picture, picture, [], matcher=matcher)
    path = project / "params.yaml"
    with pytest.raises(UserError, match=r"not made yet.*dvc repro finetune@dinov2_tiny-last1"):
        images.Matcher(weights="last1", path=path)
    for name, value in {"backbone": "nope", "weights": "nope", "rule": "nope"}.items():
        with pytest.raises(UserError, match=f"{name}: 'nope'; allowed: "):
            images.Matcher(**{name: value}, path=path)
    tensors = project / "data/weights/dinov2_tiny/frozen.safetensors"
    hidden = tensors.rename(tmp_path / "hidden")
    try:
        fetched = images.Matcher(path=path)  # from where params.yaml says they are
        assert digest(fetched.network.net.state_dict()) == digest(load_file(tmp_path / "hidden"))
    finally:
        hidden.rename(tensors)
    values = params.read_yaml(path)
    values["backbones"]["dinov2_tiny"]["weights"]["seed"] = 9
    write_json(tmp_path / "params.yaml", values)
    (tmp_path / "data").symlink_to(project / "data")
    with pytest.raises(UserError, match="made under other parameters"):
        images.Matcher(path=tmp_path / "params.yaml")


def test_the_features_are_the_pipelines(project, monkeypatch):
    """What `extract` stores of an image is what a Matcher computes of it."""
    from semcorr.artifacts.store import Store
    from semcorr.datasets.base import read_images

    monkeypatch.chdir(project)
    for arguments in (["fetch", "toy_willow"], ["extract", "dinov2_tiny", "frozen", "toy_willow"]):
        cli.run_stage(cli.parser().parse_args(arguments))
    job = graph.Graph(params.load()).job("extract", "dinov2_tiny", "frozen", "toy_willow")
    matcher = images.Matcher()
    with Store(job.outputs["store"], job.fingerprint) as store:
        image = read_images(job.inputs["images"])[0]
        stored = store.array(image.id).astype(np.float32)
        features, grid = matcher.features(images.open_image(f"data/toy_willow/images/{image.file}"))
        assert grid == store.grid(image.id)
    stored /= np.linalg.norm(stored, axis=-1, keepdims=True)
    np.testing.assert_allclose(features.numpy(), stored, atol=2e-3)


def test_on_the_command_line(project, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    picture.save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    out, listed = tmp_path / "m.webp", tmp_path / "m.json"
    cli.main(["match-images", file, file, "--points", "5,5", "64.5,30", "--out", str(out), "--json", str(listed)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" -> ")[0] for line in lines] == ["5.0,5.0", "64.5,30.0"]
    written = json.loads(listed.read_text())
    assert [one["source"] for one in written["matches"]] == [[5, 5], [64.5, 30]]
    assert written["weights"] == "frozen"
    with PillowImage.open(out) as shown:
        assert shown.format == "WEBP"
    before = out.read_bytes()
    for wrong, said in {
        ("--points", "500,5"): "outside the source image",
        ("--out", "m.txt"): "allowed: names ending in .png",
        ("--dense",): "needs --out",
    }.items():
        with pytest.raises(SystemExit) as ended:
            cli.main(
                ["match-images", file, file, "--out", str(out), *wrong]
                if wrong != ("--dense",)
                else ["match-images", file, file, *wrong]
            )
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert out.read_bytes() == before
    with pytest.raises(SystemExit):
        cli.main(["match-images", file, file, "--points", "5"])
    assert "write X,Y such as 120,80" in capsys.readouterr().err


@pytest.fixture
def tiny_published(monkeypatch, tmp_path, smoke, server):
    """A published network that a local server has: the same code, another table of names."""
    spec = params.validate(smoke, "smoke").backbones["dinov2_tiny"]
    torch.save(build(spec).net.state_dict(), tmp_path / "net.pth")
    content = server.files["net.pth"] = (tmp_path / "net.pth").read_bytes()
    keys = ("family", "model", "overrides", "image_size", "layer", "norm")
    weights = {"kind": "url", "urls": [server.url("net.pth")], "sha256": hashlib.sha256(content).hexdigest()}
    entry = {key: getattr(spec, key) for key in keys} | {"weights": weights}
    monkeypatch.setitem(published.PUBLISHED, "tiny", published.Published(entry=entry, size=len(content), licence="X"))
    monkeypatch.setenv("SEMCORR_CACHE", str(tmp_path / "cache"))
    return server


def test_a_published_network_in_any_folder(tiny_published, tmp_path, monkeypatch, picture, capsys):
    """No params.yaml, nothing made before: fetched once, checked, and kept for all folders; the folder stays clean."""
    folder = tmp_path / "photos"
    folder.mkdir()
    monkeypatch.chdir(folder)
    picture.save("a.png")
    arguments = ["match-images", "a.png", "a.png", "--backbone", "tiny", "--points", "52,37", "--rule", "argmax"]
    for _ in range(2):
        cli.main(arguments)
        assert capsys.readouterr().out.startswith("52.0,37.0 -> 5")
    assert tiny_published.requests == 1
    cli.main(["backbones"])
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert " yes " in listed["tiny"]
    assert {"dinov2_s14", "dinov2_b14", "dinov2_l14", "dinov3_b16", "sam_b", "demo"} <= listed.keys()
    assert "DINOv3 License" in listed["dinov3_b16"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.png"]
    found = images.match_images("a.png", "a.png", [(52, 37)], backbone="tiny")
    assert found.made_by == {"backbone": "tiny", "weights": "frozen", "rule": "softargmax"}


def test_the_least_similarity_that_was_measured(tiny_published, tmp_path, monkeypatch, picture, capsys):
    """It leaves out what was found by itself, never a point that was asked for; the user's own number wins."""
    monkeypatch.chdir(tmp_path)
    picture.save("a.png")
    picture.rotate(90).save("b.png")
    every = images.match_images("a.png", "b.png", backbone="tiny")
    middle = float(np.median(every.similarity))
    known = published.PUBLISHED["tiny"]
    monkeypatch.setitem(published.PUBLISHED, "tiny", dataclasses.replace(known, min_similarity=middle))
    command = ["match-images", "a.png", "b.png", "--backbone", "tiny"]
    cli.main(command)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == (every.similarity >= middle).sum() < len(every.similarity)
    assert f"only matches of cosine {middle:.3f} or more" in printed.err
    cli.main([*command, "--min-similarity", "-1"])
    assert len(capsys.readouterr().out.splitlines()) == len(every.similarity)
    monkeypatch.setitem(published.PUBLISHED, "tiny", dataclasses.replace(known, min_similarity=1.0))
    cli.main([*command, "--points", "52,37", "10,10"])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "2 of 2 points: less similar than 1.000" in printed.err


def test_no_hub_is_one_line_that_names_another_way(tiny_published, tmp_path, monkeypatch, picture, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_published.files.clear()
    picture.save("a.png")
    with pytest.raises(SystemExit) as ended:
        cli.main(["match-images", "a.png", "a.png", "--backbone", "tiny"])
    assert ended.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()][-1:]
    assert "HTTP 404. Or put the file at" in line
    assert "--backbone demo" in line


def test_published_networks_are_what_they_say(smoke):
    """Each entry is a backbone as params.yaml has them; the default and those of the public API are among them."""
    for name, one in published.PUBLISHED.items():
        assert one.spec.layers[-1] == (23 if name == "dinov2_l14" else 9 if name == "demo" else 11)
        assert one.size > 1e7
    assert published.DEFAULT in published.PUBLISHED


def test_a_projects_own_names_win(project, tmp_path, monkeypatch, picture):
    """From a folder below it, too; a params.yaml of another program is none."""
    below = project / "photos/2024"
    below.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(below)
    assert images.Matcher().backbone == "dinov2_tiny"
    assert images.Matcher().weights == "frozen"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("train: {lr: 0.1}\n")
    with pytest.raises(UserError, match="backbone: 'dinov2_tiny'; allowed: dinov2_s14, dinov2_b14"):
        images.Matcher("dinov2_tiny")


def test_only_matches_that_come_back_and_are_alike(matcher, picture):
    """Mutual: looked for in the source, a match's answer lies within a cell of where it began."""
    other = PillowImage.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8))
    both = images.match_images(picture, other, grid=6, matcher=matcher)
    kept = images.match_images(picture, other, grid=6, mutual=True, matcher=matcher)
    back = images.match_images(other, picture, both.target_points, matcher=matcher).target_points
    grid = both.source_grid
    away = np.abs(grid.pixels_to_cells(back) - grid.pixels_to_cells(both.source_points)).max(axis=1)
    assert kept.source_points.tolist() == both.source_points[away <= 1].tolist()
    assert 0 < len(kept.source_points) < len(both.source_points)
    limit = float(np.median(both.similarity))
    alike = images.match_images(picture, other, grid=6, min_similarity=limit, matcher=matcher)
    assert alike.source_points.tolist() == both.source_points[both.similarity >= limit].tolist()
    with pytest.raises(UserError, match=r"min_similarity: 2; allowed: -1 to 1"):
        images.match_images(picture, other, min_similarity=2, matcher=matcher)
    none = images.match_images(picture, other, grid=2, min_similarity=1, matcher=matcher)
    assert none.source_points.shape == none.target_points.shape == (0, 2)
    assert none.picture().width > images.SIDE
    assert none.to_dict()["matches"] == []


def test_another_image_size(project, picture):
    larger = images.Matcher(path=project / "params.yaml", image_size=224)
    _, grid = larger.features(picture)
    assert max(grid.resized_size) == 224
    with pytest.raises(UserError, match="image size: 8; allowed: 16 to 4096 pixels"):
        images.Matcher(path=project / "params.yaml", image_size=8)


def test_json_has_sizes_by_name_and_two_decimals(matcher, picture):
    values = images.match_images(picture, picture, [(10 / 3, 20 / 3)], matcher=matcher).to_dict()
    assert (values["source_width"], values["source_height"]) == (120, 90)
    assert (values["target_width"], values["target_height"]) == (120, 90)
    assert values["matches"][0]["source"] == [3.33, 6.67]


def test_the_object_is_told_from_the_background(picture):
    """Features by construction: two blobs of one kind in the middle of the other kind, one of them with two halves."""
    grid = Grid(image_size=(80, 80), resized_size=(80, 80), stride=10)
    ground, left, right = torch.eye(8)[0], torch.eye(8)[1] + torch.eye(8)[2], torch.eye(8)[1] + torch.eye(8)[3]
    maps = ground.repeat(2, 8, 8, 1)
    maps[0, 2:5, 2:4], maps[0, 2:5, 4:6] = left, right
    maps[1, 4:7, 3:5], maps[1, 4:7, 5:7] = left, right
    maps = torch.nn.functional.normalize(maps + 0.01 * torch.randn(maps.shape), dim=-1)
    found = images.ImageMatches(
        source=picture.resize((80, 80)),
        target=picture.resize((80, 80)),
        source_points=np.zeros((0, 2)),
        target_points=np.zeros((0, 2)),
        similarity=np.zeros(0),
        source_features=maps[0],
        target_features=maps[1],
        source_grid=grid,
        target_grid=grid,
        sampling="bilinear",
        made_by={},
    )
    source, target = found.objects()
    expected = np.zeros((2, 8, 8), bool)
    expected[0, 2:5, 2:6] = expected[1, 4:7, 3:7] = True
    assert (source == expected[0]).all()
    assert (target == expected[1]).all()
    shown = np.asarray(found.dense(side=80)).astype(int)
    colours = {
        name: shown[y, x]
        for name, (x, y) in {"l": (30, 35), "r": (50, 35), "l2": (86 + 40, 55), "r2": (86 + 60, 55)}.items()
    }
    far = np.abs(colours["l"] - colours["r"]).max()
    assert np.abs(shown[5, 5] - shown[5, 5].mean()).max() <= 1  # the background is grey
    assert far > 60  # the halves differ, in either image
    assert np.abs(colours["l2"] - colours["r2"]).max() > 60


def test_numbers_and_a_scale_on_the_picture(matcher, picture):
    """The scale takes room below; numbers and lines take the colours of similarity, not of their order."""
    plain = pictures.matches(picture, picture, np.zeros((0, 2)), np.zeros((0, 2)), side=200)
    found = images.match_images(picture, picture.rotate(5), grid=3, matcher=matcher)
    shown = found.picture(side=200)
    assert shown.height > plain.height
    assert shown.width == plain.width


def test_where_nothing_can_be_written_is_said_before_the_work(project, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    picture.save(tmp_path / "a.png")
    (tmp_path / "d.png").mkdir()
    file = str(tmp_path / "a.png")
    for option, value, said in (
        ("--out", tmp_path / "d.png", "is a folder"),
        ("--out", tmp_path / "nowhere/m.png", "there is no folder"),
        ("--json", tmp_path, "is a folder"),
        ("--image-size", 100_000, "allowed: 16 to 4096 pixels"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["match-images", file, file, "--points", "5,5", option, str(value)])
        assert ended.value.code == 2
        answer = capsys.readouterr()
        assert said in answer.err
        assert answer.out == ""
    cli.main(["match-images", file, file, "--points", "5,5", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["matches"][0]["source"] == [5, 5]
    PillowImage.new("RGB", (120, 90), "red").save(tmp_path / "b.png")
    cli.main(["match-images", file, str(tmp_path / "b.png"), "--points", "5,5", "--min-similarity", "1"])
    answer = capsys.readouterr()
    assert answer.out == ""
    assert "no match was kept" in answer.err
    for points in ("a", [("x", "y")], [(1, 2, 3)]):
        with pytest.raises(UserError, match="expected"):
            images.match_images(picture, picture, points)
    with pytest.raises(UserError, match=r"grid: 2\.5; allowed: a whole number"):
        images.match_images(picture, picture, grid=2.5)
