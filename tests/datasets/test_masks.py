"""Masks of objects: as files, in an index, as cells, and what a rule that searches the object alone answers."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_stages, setting
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from semcorr import match_images, params
from semcorr.artifacts.store import Store
from semcorr.datasets import masks
from semcorr.datasets.base import Image, read_images, read_pairs
from semcorr.datasets.decode import decode_labels
from semcorr.datasets.search import cells
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.matching import match_points
from semcorr.readouts.argmax import argmax
from semcorr.tensors import normalise, sample

B, TEST = "dinov2_tiny", "toy_spair_val"


@given(
    st.integers(0, 2**32), st.integers(20, 90), st.integers(20, 90), st.integers(1, 2), st.sampled_from([28, 56, 140])
)
def test_cells_that_show_a_part_of_the_object(seed, height, width, upsample, long_side):
    """From the definition, pixel by pixel and cell by cell; also where a cell is smaller than a pixel."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    top, left = rng.integers(0, height), rng.integers(0, width)
    mask[top : top + rng.integers(1, 40), left : left + rng.integers(1, 40)] = True
    scale = long_side / max(height, width)
    resized = max(1, round(height * scale)), max(1, round(width * scale))
    grid = Grid(image_size=(height, width), resized_size=resized, stride=14, upsample=upsample)
    side = 14 / upsample
    expected = np.zeros(grid.shape, bool)
    for y, x in zip(*np.nonzero(mask), strict=True):
        place = [
            (value + 0.5) * small / large / side
            for value, small, large in zip((y, x), resized, mask.shape, strict=True)
        ]
        expected[int(place[0]), int(place[1])] = True
    for row, column in np.ndindex(grid.shape):
        y, x = (
            (at + 0.5) * side * large / small
            for at, small, large in zip((row, column), resized, mask.shape, strict=True)
        )
        if mask[min(int(y), height - 1), min(int(x), width - 1)]:
            expected[row, column] = True
    np.testing.assert_array_equal(cells(mask, grid), expected)


def test_what_a_mask_file_shows():
    """Drawn ones are 0 and 255; those of classes have a palette and a void border, 255; some are in colour."""
    grey = PillowImage.fromarray(np.array([[0, 255, 1]], np.uint8))
    assert masks.shown(grey).tolist() == [[False, True, True]]
    classes = grey.convert("P")
    classes.putdata([0, 255, 3])
    assert masks.shown(classes).tolist() == [[False, False, True]]
    colour = PillowImage.fromarray(np.array([[[0, 0, 0, 255], [0, 9, 0, 255]]], np.uint8))
    assert masks.shown(colour).tolist() == [[False, True]]
    assert masks.shown(PillowImage.fromarray(np.array([[True, False]]))).tolist() == [[True, False]]


def _modes() -> dict[str, PillowImage.Image]:
    """A square of 3 x 3 at the upper left of 8 x 6, as people save masks."""
    grey = np.zeros((6, 8), np.uint8)
    grey[:3, :3] = 255
    one = PillowImage.fromarray(grey)
    cut = PillowImage.new("RGBA", one.size, (255, 255, 255, 0))
    cut.paste((0, 0, 0, 255), (0, 0, 3, 3))
    opaque = PillowImage.merge("LA", [one, PillowImage.new("L", one.size, 255)])
    swapped = PillowImage.fromarray(1 - grey // 255).convert("P")
    swapped.putpalette([255, 255, 255, 0, 0, 0])
    return {
        "L": one,
        "1": one.convert("1"),
        "LA": opaque,
        "RGB": one.convert("RGB"),
        "cut out": cut,
        "P": one.convert("P"),
        "P, swapped": swapped,
        "I;16": PillowImage.fromarray(grey.astype(np.uint16) * 257),
    }


@pytest.mark.parametrize("name", _modes())
def test_masks_that_people_draw(name):
    """In any mode, also as a cut-out, also turned."""
    image = _modes()[name]
    expected = np.zeros((6, 8), bool)
    expected[:3, :3] = True
    np.testing.assert_array_equal(masks.drawn(image), expected)
    file = io.BytesIO()
    exif = PillowImage.Exif()
    exif[0x0112] = 3
    image.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(masks.drawn(decode_labels(file, upright=True)), expected[::-1, ::-1])


def test_flat_maps_are_warned_of_on_the_object_too(caplog):
    grid = Grid(image_size=(56, 56), resized_size=(56, 56), stride=14)
    flat, inside = torch.zeros(4, 4, 3), np.zeros((4, 4), bool)
    flat[..., 0] = 1
    inside[1:3, 1:3] = True
    for searched in (None, inside):
        caplog.clear()
        match_points(np.array([[20.0, 20.0]]), (flat, grid), (flat, grid), "bilinear", argmax, searched)
        assert "equally similar to every cell" in caplog.text
    caplog.clear()
    uneven = flat.clone()
    uneven[2, 2] = torch.tensor([0.0, 1.0, 0.0])
    match_points(np.array([[20.0, 20.0]]), (flat, grid), (uneven, grid), "bilinear", argmax, inside)
    assert not caplog.text


def test_an_index_keeps_every_pixel():
    mask = np.random.default_rng(0).random((37, 53)) < 0.5
    image = Image(id="a", file="a.jpg", category="c", height=37, width=53, mask=masks.packed(mask))
    np.testing.assert_array_equal(masks.of(image), mask)
    with pytest.raises(UserError, match="has no mask, so a rule cannot search its object alone"):
        masks.of(Image(id="a", file="a.jpg", category="c", height=37, width=53))


def test_points_on_the_object():
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = mask[3, 5] = True
    points = np.array([[2.0, 1.0], [1.51, 0.51], [1.49, 1.0], [2.0, 1.49], [2.0, 1.51], [5.4, 3.4], [99.0, 99.0]])
    assert masks.contains(mask, points).tolist() == [True, True, False, True, False, True, True]


@pytest.fixture
def experiment(smoke, tmp_path, monkeypatch):
    """A function that runs stages of one backbone on one drawn dataset, frozen, after changes of the smoke preset."""
    monkeypatch.chdir(tmp_path)

    def run(*stages: str, changes=()) -> graph.Graph:
        values = json.loads(json.dumps(smoke))
        values["grid"] |= {"backbones": [B], "datasets": [TEST], "tunings": [], "weights": ["frozen"], "trunks": []}
        values["grid"] |= {"train": None, "validate": None, "rules": ["argmax", "inside"]}
        values["grid"]["layers"] |= {"backbones": [B], "datasets": [TEST], "rule": "inside"}
        values["rules"]["inside"] = values["rules"]["argmax"] | {"search": "object"}
        for change in changes:
            change(values)
        return run_stages(values, *stages)

    return run


def _matches(plan: graph.Graph, rule: str) -> pd.DataFrame:
    return pd.read_parquet(plan.job("match", B, "frozen", TEST, rule).outputs["matches"])


def _drawn(plan: graph.Graph) -> dict[str, np.ndarray]:
    """The masks as they were drawn, from their files."""
    [root] = Path("data/sources").glob("**/Segmentation")
    index = read_images(plan.job("fetch", TEST).outputs["images"])
    return {image.id: np.asarray(PillowImage.open(root / f"{image.id}.png")) > 127 for image in index}


def test_a_rule_that_searches_the_object_alone(experiment):
    """Each answer is the most similar of the cells that show the object; PCK and the share beside it follow."""
    plan = experiment("fetch", "weights", "extract", "match", "evaluate", "layers")
    drawn, found, plain = _drawn(plan), _matches(plan, "inside"), _matches(plan, "argmax")
    pairs = {pair.id: pair for pair in read_pairs(plan.job("fetch", TEST).outputs["pairs"])}
    with Store(plan.job("extract", B, "frozen", TEST).outputs["store"], None) as store:
        for name, rows in list(found.groupby("pair", sort=False))[:12]:
            source, target = (
                normalise(torch.from_numpy(store.array(getattr(pairs[name], side))).float())
                for side in ("source", "target")
            )
            start, end = store.grid(pairs[name].source), store.grid(pairs[name].target)
            places = torch.from_numpy(start.pixels_to_cells(rows[["source_x", "source_y"]].to_numpy()))
            similar = torch.einsum("nc,hwc->nhw", sample(source, places, "bilinear"), target).numpy()
            similar[:, ~cells(drawn[pairs[name].target], end)] = -2
            best = [np.unravel_index(one.argmax(), one.shape)[::-1] for one in similar]
            expected = end.answers(np.array(best, float))
            np.testing.assert_allclose(rows[["predicted_x", "predicted_y"]].to_numpy(), expected, atol=1e-6)
    assert not found["predicted_x"].equals(plain["predicted_x"])
    assert (found["similarity"] <= plain["similarity"] + 1e-6).all()
    shares = []
    for rule, rows in (("argmax", plain), ("inside", found)):
        cell = json.loads(plan.job("evaluate", B, "frozen", TEST, rule).outputs["cell"].read_text())
        missed = []
        for x, y, image_id in rows[["predicted_x", "predicted_y", "target_image"]].itertuples(index=False):
            missed.append(not drawn[image_id][int(y + 0.5), int(x + 0.5)])
        assert cell["off_object"]["mean"] == pytest.approx(np.mean(missed))
        assert cell["off_object"]["ci95"][0] <= cell["off_object"]["mean"] <= cell["off_object"]["ci95"][1]
        shares.append(np.mean(missed))
    assert shares[1] < shares[0]  # not 0: a cell that shows a part of the object may be centred beside it
    curve = json.loads(plan.job("layers", B, TEST).outputs["curve"].read_text())
    [layer] = [row for row in curve["layers"] if row["layer"] == plan.params.backbones[B].layer]
    cell = json.loads(plan.job("evaluate", B, "frozen", TEST, "inside").outputs["cell"].read_text())
    for key, value in layer["overall_keypoint"].items():
        assert value["mean"] == pytest.approx(cell["overall_keypoint"][key]["mean"], abs=0.02)  # in another precision


def test_datasets_without_masks(experiment, smoke):
    with pytest.raises(
        UserError, match=r"rules\.inside\.search: object, but 'toy_willow' is of format pfwillow, which"
    ):
        experiment(changes=[setting("grid", "datasets", [TEST, "toy_willow"])])
    plan = experiment("fetch")
    index = plan.job("fetch", TEST).outputs["images"]
    table = pd.read_parquet(index)
    assert table["mask"].notna().all()
    assert index.stat().st_size < 200_000


def test_a_mask_that_shows_nothing_is_refused(experiment):
    plan = experiment("fetch")
    [root] = Path("data/sources").glob("**/Segmentation")
    image = read_images(plan.job("fetch", TEST).outputs["images"])[0]
    path = root / f"{image.id}.png"
    PillowImage.new("L", (image.width, image.height), 0).save(path)
    folder = {"kind": "path", "path": str(root.parent)}
    with pytest.raises(UserError, match=r"\.png: the mask shows no object"):
        experiment("fetch", changes=[setting("datasets", TEST, "sources", [folder])])


def test_own_images_with_a_mask(experiment):
    """Every answer is in the mask; the whole mask changes nothing; a mask of another size is an error."""
    plan = experiment("fetch", "weights")
    folder = plan.job("fetch", TEST).outputs["folder"]
    one, two = (str(folder / image.file) for image in read_images(plan.job("fetch", TEST).outputs["images"])[:2])
    size = PillowImage.open(two).size
    mask = np.zeros(size[::-1], np.uint8)
    mask[: size[1] // 2, size[0] // 2 :] = 7
    points = [[40, 40], [70, 50], [90, 90]]
    found = match_images(one, two, points, backbone=B, rule="argmax", target_mask=mask)
    width = found.target_grid.pitch * max(size) / max(found.target_grid.resized_size)
    assert (found.target_points[:, 0] > size[0] / 2 - width).all()
    assert (found.target_points[:, 1] < size[1] / 2 + width).all()
    file = io.BytesIO()
    PillowImage.fromarray(mask).save(file, "PNG")
    again = match_images(one, two, points, backbone=B, rule="inside", target_mask=file)
    np.testing.assert_array_equal(again.target_points, found.target_points)
    whole = match_images(one, two, points, backbone=B, rule="argmax", target_mask=np.ones_like(mask))
    plain = match_images(one, two, points, backbone=B, rule="argmax")
    np.testing.assert_array_equal(whole.target_points, plain.target_points)
    nearest = match_images(one, two, backbone=B, rule="argmax", target_mask=mask)
    x, y = np.floor(nearest.target_points + 0.5).astype(int).T
    assert mask[y, x].all()
    with pytest.raises(UserError, match=r"target_mask is \(3, 3\); allowed"):
        match_images(one, two, points, backbone=B, target_mask=np.ones((3, 3)))
    with pytest.raises(UserError, match="target_mask is 0 everywhere"):
        match_images(one, two, points, backbone=B, target_mask=0 * mask)
    with pytest.raises(UserError, match=r"rules\.inside searches the object alone, so it needs a mask of it"):
        match_images(one, two, points, backbone=B, rule="inside")


def test_no_other_search(smoke):
    values = json.loads(json.dumps(smoke))
    values["rules"]["argmax"]["search"] = "background"
    with pytest.raises(UserError, match=r"rules\.argmax\.search"):
        params.validate(values, "x")
