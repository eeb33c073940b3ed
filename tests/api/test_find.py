"""Labelled points in other images: on images whose answers are known, and by a computation of its own."""

import json

import numpy as np
import pytest
import torch
from conftest import run_stages
from PIL import Image as PillowImage

from semcorr import Support, cli
from semcorr.api.find import Labels
from semcorr.api.images import Matcher
from semcorr.datasets import coco
from semcorr.datasets.base import read_image, read_images
from semcorr.errors import UserError

B, DATA = "dinov2_tiny", "toy_spair_val"


@pytest.fixture(scope="module")
def project(smoke, tmp_path_factory):
    """A folder with a network and drawn images, and the images with their points."""
    root = tmp_path_factory.mktemp("find")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        plan = run_stages(json.loads(json.dumps(smoke)), "fetch", "weights")
        index = root / plan.job("fetch", DATA).outputs["images"]
    images = read_images(index)
    category = images[0].category
    own = images[:6]  # also of other categories, which is nothing to a network
    opened = [read_image(index.parent / "images", image) for image in own]
    points = [dict(zip(image.keypoint_ids, image.keypoints, strict=True)) for image in own]
    return root, category, opened, points


@pytest.fixture
def matcher(project, monkeypatch):
    monkeypatch.chdir(project[0])
    return Matcher(B, rule="argmax")


def test_an_image_finds_its_own_points(project, matcher):
    """Those at the centres of cells, exactly."""
    _, _, images, _ = project
    _, grid = matcher.features(images[0])
    height, width = grid.shape
    cells = np.array([[0, 0], [width - 2, height - 2], [2, 1]], float)
    points = dict(zip("abc", grid.cells_to_pixels(cells), strict=True))
    found = Support([(images[0], points)], matcher=matcher).find(images[0])
    assert list(found.points) == ["a", "b", "c"]
    for name, place in points.items():
        np.testing.assert_allclose(found.points[name], place, atol=1e-6)
        assert found.similarity[name] == pytest.approx(1, abs=1e-3)


def _vectors(matcher: Matcher, image: PillowImage.Image, places: list) -> np.ndarray:
    """Descriptors (N, C) between cells, by torch's own grid sampling."""
    features, grid = matcher.features(image)
    height, width = features.shape[:2]
    cells = torch.from_numpy(grid.pixels_to_cells(np.array(places, float))).float()
    at = (2 * cells + 1) / torch.tensor([width, height]) - 1
    rows = torch.nn.functional.grid_sample(
        features.permute(2, 0, 1)[None], at[None, None], align_corners=False, padding_mode="border"
    )
    rows = rows[0, :, 0].T.numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("combine", ["nearest", "mean"])
def test_several_labelled_images_against_their_definition(project, matcher, combine):
    """The cell that is most similar to any of the labelled points, or to their mean; a part may be missing in some."""
    _, _, images, points = project
    parts = [dict(list(points[0].items())[:4]), dict(list(points[1].items())[2:6])]
    support = Support(list(zip(images[:2], parts, strict=True)), combine=combine, matcher=matcher)
    assert support.names == list(dict.fromkeys([*parts[0], *parts[1]]))
    target = images[-1]
    found = support.find(target)
    features, grid = matcher.features(target)
    cells = features.flatten(0, 1).numpy()
    for name in support.names:
        known = [(image, one[name]) for image, one in zip(images[:2], parts, strict=True) if name in one]
        vectors = np.concatenate([_vectors(matcher, image, [place]) for image, place in known])
        if combine == "mean":
            vectors = vectors.mean(axis=0, keepdims=True)
            vectors /= np.linalg.norm(vectors)
        similar = (vectors @ cells.T).max(axis=0)
        row, column = divmod(int(similar.argmax()), features.shape[1])
        np.testing.assert_allclose(found.points[name], grid.answers(np.array([[column, row]], float))[0], atol=1e-6)
        assert found.similarity[name] == pytest.approx(similar.max(), abs=1e-5)


def test_a_part_of_one_labelled_image_alone_does_not_depend_on_the_others(project, matcher):
    _, _, images, points = project
    name = next(iter(points[0]))
    alone = Support([(images[0], {name: points[0][name]})], matcher=matcher).find(images[-1])
    others = {key: value for key, value in points[1].items() if key != name}
    for combine in ("nearest", "mean"):
        both = Support([(images[0], {name: points[0][name]}), (images[1], others)], combine=combine, matcher=matcher)
        np.testing.assert_array_equal(both.find(images[-1]).points[name], alone.points[name])


def test_what_cannot_be_a_support(project, matcher):
    _, _, images, _ = project
    with pytest.raises(UserError, match="no labelled point"):
        Support([(images[0], {})], matcher=matcher)
    with pytest.raises(UserError, match="lies outside the source image"):
        Support([(images[0], {"x": (9999, 2)})], matcher=matcher)
    with pytest.raises(UserError, match="combine: 'best'"):
        Support([(images[0], {"x": (2, 2)})], combine="best", matcher=matcher)


@pytest.fixture
def folder(project, tmp_path, monkeypatch):
    """A labelling tool's export of two images, and three more images."""
    _, category, images, points = project
    names = sorted({name for one in points for name in one})
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images[:5]):
        image.save(tmp_path / "images" / f"{number}.png")
    labels = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": images[n].width, "height": images[n].height} for n in (0, 1)
        ],
        "categories": [{"id": 7, "name": category, "keypoints": names}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": n,
                "category_id": 7,
                "bbox": [0, 0, 50, 50],
                "iscrowd": 0,
                "keypoints": [v for name in names for v in ([*points[n][name], 2] if name in points[n] else [0, 0, 0])],
            }
            for n in (0, 1)
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    monkeypatch.chdir(project[0])
    return tmp_path


def _run(folder, *more: str) -> None:
    (folder / "found.json").unlink(missing_ok=True)
    given = [str(folder / "labels.json"), str(folder / "images"), "--out", str(folder / "found.json")]
    options = cli.parser().parse_args(["find", *given, "--backbone", B, "--rule", "argmax", *more])
    cli.VERBS["find"](options)


def test_the_verb_writes_what_labelling_tools_open(project, folder, matcher, capsys):
    _, category, images, _ = project
    _run(folder, "--pictures", str(folder / "shown"))
    labels = Labels.read(folder / "labels.json")
    count = len({name for _, points in labels.images for name in points})
    said = f"{3 * count} of {3 * count} points of category {category} in 3 images, from 2 labelled objects"
    assert said in capsys.readouterr().out
    file = folder / "found.json"
    content = coco.read_file(file)
    items, left_out = coco.read_items(content, file)
    assert not left_out
    assert [image.file_name for image in content.images] == ["2.png", "3.png", "4.png"]
    support = Support(labels.images, matcher=matcher)
    for number, item in enumerate(items, start=2):
        found = support.find(images[number])
        assert item.points.keys() == found.points.keys()
        for name, place in item.points.items():
            np.testing.assert_allclose(place, found.points[name], atol=0.005)
    assert content.categories[0].keypoints == labels.names
    assert sorted(path.name for path in (folder / "shown").iterdir()) == ["2.png.jpg", "3.png.jpg", "4.png.jpg"]
    again = Labels.read(file, folder / "images")  # what was found labels further images
    assert [path.name for path, _ in again.images] == ["2.png", "3.png", "4.png"]


def test_parts_that_are_not_similar_count_as_not_there(folder, matcher):
    _run(folder)
    every = json.loads((folder / "found.json").read_text())["annotations"]
    values = sorted(value for one in every for value in one["similarity"] if value is not None)
    middle = (values[len(values) // 2 - 1] + values[len(values) // 2]) / 2
    _run(folder, "--min-similarity", f"{middle:.6f}")
    kept = json.loads((folder / "found.json").read_text())["annotations"]
    assert sum(one["num_keypoints"] for one in kept) == sum(value >= middle for value in values)
    for one in kept:
        for start, value in enumerate(one["similarity"]):
            there = value is not None and value >= middle
            assert one["keypoints"][3 * start + 2] == (2 if there else 0)
            assert there or one["keypoints"][3 * start : 3 * start + 2] == [0, 0]
    _run(folder, "--min-similarity", "1")
    assert json.loads((folder / "found.json").read_text())["annotations"] == []


def test_the_verb_says_what_is_wrong_before_it_works(folder):
    for more, message in (
        (["--category", "elk"], "category: 'elk'"),
        (["--min-similarity", "2"], "--min-similarity 2; allowed: -1 to 1"),
        (["--pictures", str(folder / "images")], "exists, and is no empty folder"),
        (["--out", str(folder / "nowhere" / "x.json")], "there is no folder"),
        (["--out", str(folder)], "is a folder"),
        (["--images", str(folder / "nowhere")], "0.png: the image is missing"),
    ):
        with pytest.raises(UserError, match=message):
            _run(folder, *more)
    (folder / "images" / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"5\.png: not a readable image"):
        _run(folder)
    for path in (folder / "images").iterdir():
        if path.name not in ("0.png", "1.png"):
            path.unlink()
    with pytest.raises(UserError, match="holds no image"):
        _run(folder)
    assert not (folder / "found.json").exists()


def test_what_is_there_is_not_overwritten(folder):
    _run(folder)
    options = ["find", str(folder / "labels.json"), str(folder / "images"), "--backbone", B, "--out"]
    for name in ("found.json", "labels.json"):
        before = (folder / name).read_bytes()
        with pytest.raises(UserError, match=r"exists\. Choose another name"):
            cli.VERBS["find"](cli.parser().parse_args([*options, str(folder / name)]))
        assert (folder / name).read_bytes() == before


def test_labels_as_tools_write_them(folder, capsys):
    """Without a box; with points on the far edge, and beyond it, which are left out and counted."""
    labels = json.loads((folder / "labels.json").read_text())
    size = [labels["images"][0][key] for key in ("width", "height")]
    for one in labels["annotations"]:
        del one["bbox"]
    labels["annotations"][0]["keypoints"][:6] = [*size, 2, size[0] + 9, 0, 2]
    (folder / "labels.json").write_text(json.dumps(labels))
    _run(folder)
    assert "1 keypoints outside their image left out" in capsys.readouterr().err
    assert Labels.read(folder / "labels.json").images[0][1]["0"] == [size[0] - 1, size[1] - 1]


def test_several_categories_need_a_choice(folder):
    labels = json.loads((folder / "labels.json").read_text())
    labels["categories"].append({"id": 8, "name": "elk", "keypoints": ["nose"]})
    one = {"id": 9, "image_id": 0, "category_id": 8, "bbox": [0, 0, 5, 5], "keypoints": [3, 3, 2]}
    labels["annotations"].append(one)
    (folder / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(UserError, match=r"has keypoints of .*, elk; choose one with --category"):
        _run(folder)
    _run(folder, "--category", "elk")
    found = json.loads((folder / "found.json").read_text())
    assert found["categories"][0]["keypoints"] == ["nose"]
    assert [image["file_name"] for image in found["images"]] == ["1.png", "2.png", "3.png", "4.png"]
