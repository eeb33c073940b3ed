"""Two images of one's own: any format, mode and size; what is matched is known by construction."""

import json

import numpy as np
import pytest
from PIL import Image as PillowImage
from safetensors.torch import load_file

from semcorr import cli, graph, images, params
from semcorr.backbones import digest
from semcorr.errors import UserError
from semcorr.files import write_json

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
    from semcorr.datasets.base import read_images
    from semcorr.store import Store

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
