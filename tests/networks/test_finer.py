"""The head, the two views of an image, and the mirrored trunk: against plain paths that must agree with them."""

import json
from itertools import pairwise

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import randomised, run_stages, setting
from PIL import Image as PillowImage
from PIL import ImageOps

from semcorr import UnifiedBackbone, match_images, params
from semcorr.api.images import Matcher
from semcorr.artifacts.files import sha256
from semcorr.artifacts.store import Store, describe
from semcorr.datasets.base import read_image, read_images
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.matching import heatmaps, match_points
from semcorr.networks import losses, training, views
from semcorr.networks.backbones import build, load, overlay, read, save
from semcorr.networks.tail import Tail
from semcorr.networks.upsampler import Upsampler
from semcorr.readouts.argmax import argmax
from semcorr.report import pictures
from semcorr.tensors import normalise, sample

B = "dinov2_tiny"
TUNED = {"fingerprint": "", "inputs": {"tensors": {"sha256": "base"}}}  # provenance of a checkpoint
HEAD = {"upsample": 2, "channels": 8, "learning_rate": 3.0}
NARROWING = {"name": "gaussian_ce", "temperature": 0.05, "sigma_cells": {"from": 3.0, "to": 0.7}}


def _upsampler(upsample: int, width: int = 6) -> Upsampler:
    return Upsampler(width, params.Head(upsample=upsample, channels=4))


@pytest.mark.parametrize("upsample", [2, 4])
def test_a_new_head_interpolates_between_the_networks_cells(upsample):
    """Features that grow evenly from cell to cell are what they were at the same place of the image, channels aside."""
    head = _upsampler(upsample)
    y, x = np.mgrid[:7, :9].astype(float)
    slope = np.stack([x, y, x + y, x - y, 2 * x, np.ones_like(x)])
    found = head(torch.from_numpy(slope).float()[None])[0].detach().numpy()
    assert found.shape == (4, 7 * upsample, 9 * upsample)
    fine = Grid(image_size=(98, 126), resized_size=(98, 126), stride=14, upsample=upsample)
    coarse = Grid(image_size=(98, 126), resized_size=(98, 126), stride=14)
    project = head.project.weight.detach().numpy()[:, :, 0, 0]
    for row, column in ((2 * upsample, 3 * upsample + 1), (3 * upsample - 1, 5 * upsample)):
        [[cx, cy]] = coarse.pixels_to_cells(fine.cells_to_pixels(np.array([[column, row]], float)))
        expected = project @ np.array([cx, cy, cx + cy, cx - cy, 2 * cx, 1])
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(project @ project.T, np.eye(4), atol=1e-5)  # lengths and angles are kept


def test_a_features_last_bit_does_not_depend_on_the_batch():
    """Each image alone, and all at once, without gradients; with few channels the kernels do differ."""
    head = Upsampler(48, params.Head(upsample=2, channels=16))
    torch.nn.init.normal_(head.steps[0].out.weight)
    maps = torch.randn(8, 48, 8, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = head(maps)
        for index in range(len(maps)):
            assert torch.equal(together[index], head(maps[index : index + 1])[0])
            assert torch.equal(together[index : index + 3], head(maps[index : index + 3]))
    torch.testing.assert_close(head(maps), together.clone(), rtol=1e-4, atol=1e-4)


def test_the_target_narrows_with_the_training():
    """From 3 to 1 cells of the network, in cells of the map that the loss sees; a plain number stays."""
    maps = torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(0))
    given = {"maps": maps, "descriptors": torch.ones(2, 3), "target": torch.ones(8, 9, 3)}
    given |= {"cells": torch.tensor([[2.0, 3.0], [6.5, 1.0]]), "generator": torch.Generator()}
    narrowing = params.GaussianCrossEntropy.model_validate(NARROWING | {"sigma_cells": {"from": 3, "to": 1}})
    for progress, upsample, sigma in ((0, 1, 3.0), (0.5, 1, 2.0), (1, 1, 1.0), (0.25, 2, 5.0)):
        plain = params.GaussianCrossEntropy.model_validate(NARROWING | {"sigma_cells": sigma})
        expected = losses.objective(plain, None)(**given)
        torch.testing.assert_close(losses.objective(narrowing, None, progress, upsample)(**given), expected)
    torch.testing.assert_close(losses.objective(plain, None, 0.9)(**given), losses.objective(plain, None)(**given))


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny", "sam_tiny"])
def test_a_head_travels_with_the_tuned_tensors(smoke, tmp_path, name):
    """Saved and loaded, in one go or laid over the frozen tensors, it gives the trained network's features."""
    spec = params.validate(smoke, "smoke").backbones[name]
    frozen = build(spec)
    side = 128 if name == "sam_tiny" else 4 * frozen.stride
    randomised(frozen.net)
    save(tmp_path / "frozen.safetensors", frozen.net.state_dict(), {})
    network = load(build(spec), tmp_path / "frozen.safetensors")
    tuning = params.Tuning.model_validate(smoke["tunings"]["last1"] | {"head": HEAD})
    tuned = training.Tuned(network, spec, tuning)
    with torch.no_grad():
        for tensor in tuned.tensors.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    expected = network.features(images, spec)
    assert expected.shape[1:] == (8, 2 * (side // network.stride), 2 * (side // network.stride))
    save(tmp_path / "best.safetensors", tuned.export(), TUNED)
    again = load(build(spec), tmp_path / "frozen.safetensors", tmp_path / "best.safetensors")
    torch.testing.assert_close(again.features(images, spec), expected, rtol=0, atol=0)
    over = load(build(spec), tmp_path / "frozen.safetensors")
    overlay(over, tmp_path / "best.safetensors", "base")
    torch.testing.assert_close(over.features(images, spec), expected, rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensor in over.upsampler.parameters())


def test_loading_a_head_draws_nothing(smoke, tmp_path):
    """The caller's random numbers go on as if no network had been loaded."""
    spec = params.validate(smoke, "smoke").backbones[B]
    network = build(spec)
    save(tmp_path / "frozen.safetensors", network.net.state_dict(), {})
    tuned = training.Tuned(network, spec, params.Tuning.model_validate(smoke["tunings"]["last1"] | {"head": HEAD}))
    save(tmp_path / "best.safetensors", tuned.export(), TUNED)
    torch.manual_seed(999)
    expected = torch.rand(1)
    torch.manual_seed(999)
    load(build(spec), tmp_path / "frozen.safetensors", tmp_path / "best.safetensors")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.pop("upsampler.project.weight"),
        lambda tensors: tensors.pop("upsampler.steps.0.out.bias"),
        lambda tensors: tensors.update({"upsampler.steps.3.up.bias": torch.zeros(8)}),
        lambda tensors: tensors.update({"upsampler.more": torch.zeros(8)}),
        lambda tensors: tensors.update({"upsampler.project.weight": torch.zeros(8)}),
        lambda tensors: [tensors.pop(name) for name in list(tensors) if ".steps." in name],
    ],
)
def test_tensors_of_no_head_are_refused(smoke, tmp_path, spoil):
    spec = params.validate(smoke, "smoke").backbones[B]
    network = build(spec)
    save(tmp_path / "frozen.safetensors", network.net.state_dict(), {})
    tuned = training.Tuned(network, spec, params.Tuning.model_validate(smoke["tunings"]["last1"] | {"head": HEAD}))
    tensors = tuned.export()
    spoil(tensors)
    save(tmp_path / "best.safetensors", tensors, TUNED)
    for attempt in (
        lambda: load(build(spec), tmp_path / "frozen.safetensors", tmp_path / "best.safetensors"),
        lambda: overlay(build(spec), tmp_path / "best.safetensors", "base"),
    ):
        with pytest.raises(UserError, match="not the tensors of a head"):
            attempt()


def _everything(values: dict) -> None:
    """A head, both views and the mirrored trunk, for the smallest network."""
    values["grid"] |= {"backbones": [B], "datasets": ["toy_spair_val"], "trunks": ["toy_spair_trn", "toy_spair_val"]}
    values["backbones"][B] |= {"views": ["plain", "mirrored"], "precision": "float32"}
    values["trunk"]["mirrored"] = True
    values["tunings"]["last1"] |= {"head": HEAD, "loss": NARROWING, "augment": {"flip": True, "photometric": 0}}


@pytest.fixture
def experiment(smoke, tmp_path, monkeypatch):
    """A function that runs stages of one backbone in a fresh folder, after changes of the smoke preset."""
    monkeypatch.chdir(tmp_path)

    def run(*stages: str, changes=()) -> graph.Graph:
        values = json.loads(json.dumps(smoke))
        for change in (_everything, *changes):
            change(values)
        return run_stages(values, *stages)

    return run


def _images(plan: graph.Graph, dataset: str) -> dict[str, PillowImage.Image]:
    index = plan.job("fetch", dataset).outputs["images"]
    return {image.id: read_image(index.parent / "images", image) for image in read_images(index)}


def test_both_views_average_the_similarity(experiment):
    """The similarity of two images in the store is the mean of that of the images and that of the mirrored ones.

    Exactly, where an image is a whole number of cells wide: the mirrored one's cells then lie where its own do.
    """
    plan = experiment("fetch", "weights", "extract", changes=[setting("backbones", B, "image_size", 112)])
    job, spec = plan.job("extract", B, "frozen", "toy_spair_val"), plan.params.backbones[B]
    network = load(build(spec), job.inputs["tensors"])
    with Store(job.outputs["store"], None) as store:
        stored = {image_id: normalise(torch.from_numpy(store.array(image_id))) for image_id in store.ids()}
        grids = {image_id: store.grid(image_id) for image_id in store.ids()}
    assert store.entries()[store.ids()[0]].shape[-1] == 2 * network.channels(spec)

    def alone(image: PillowImage.Image) -> torch.Tensor:
        pixels, grid = network.preprocess(image, spec.image_size)
        height, width = grid.shape
        with torch.inference_mode():
            return normalise(network.features(pixels[None], spec)[0].permute(1, 2, 0)[:height, :width])

    images = _images(plan, "toy_spair_val")
    whole = [image_id for image_id in images if grids[image_id].resized_size[1] % network.stride == 0][:3]
    assert len(whole) == 3
    for source, target in pairwise(whole):
        found = stored[source].flatten(0, 1) @ stored[target].flatten(0, 1).T
        plain = [alone(images[image_id]) for image_id in (source, target)]
        other = [alone(ImageOps.mirror(images[image_id])).flip(1) for image_id in (source, target)]
        similar = [one.flatten(0, 1) @ two.flatten(0, 1).T for one, two in (plain, other)]
        # Pillow's resampling of a mirrored image differs in the last bit.
        torch.testing.assert_close(found, (similar[0] + similar[1]) / 2, rtol=0, atol=2e-3)
        assert (similar[0] - similar[1]).abs().max() > 0.05


def test_the_mirrored_view_is_sampled_where_the_image_lies_in_it():
    """Features that say where they are: in any image they say the same place as the plain ones, mirrored."""
    for width in (56, 61, 69):
        grid = Grid(image_size=(40, width), resized_size=(40, width), stride=14, upsample=2)
        height, count = grid.shape
        x = grid.cells_to_pixels(np.stack([np.arange(count), np.zeros(count)], axis=1))[:, 0]
        angle = torch.from_numpy(x / 100).float().expand(height, count)
        where = torch.stack([angle.cos(), angle.sin()], dim=-1)
        both, found = views.joined([views.Seen(where, grid, False), views.Seen(where, grid, True)])
        assert found == grid
        torch.testing.assert_close(both[..., :2], where)
        seen = torch.atan2(both[..., 3], both[..., 2])[0].numpy() * 100
        inside = (width - 1 - x >= x[0]) & (width - 1 - x <= x[-1])  # elsewhere the border's value
        assert inside.sum() >= count - 1
        np.testing.assert_allclose(seen[inside], (width - 1 - x)[inside], atol=0.05)


def test_adapt_and_the_api_see_both_views_and_the_finer_grid(experiment):
    """The tuned store, from the cached trunks, holds what the API computes from the images."""
    plan = experiment("fetch", "weights", "trunk", "finetune", "adapt", "extract")
    job = plan.job("adapt", B, "last1", "toy_spair_val")
    backbone = UnifiedBackbone.from_params(B, "checkpoints/dinov2_tiny/last1", device="cpu")
    text = "\n".join(describe(job.outputs["store"]))
    assert "channels: 16; stride: 7\n" in text
    with Store(job.outputs["store"], None) as store:
        for image_id, image in list(_images(plan, "toy_spair_val").items())[:3]:
            pixels, grid = backbone.network.preprocess(image, backbone.spec.image_size)
            assert store.grid(image_id) == grid
            assert grid.upsample == 2
            height, width = grid.resized_size
            found = backbone.extract_features(pixels[None, :, :height, :width])[0].numpy()
            np.testing.assert_allclose(store.array(image_id), found, atol=1e-4)
            assert found.shape == (*grid.shape, 2 * HEAD["channels"])
    frozen = plan.job("extract", B, "frozen", "toy_spair_val").outputs["store"]
    assert "stride: 14\n" in "\n".join(describe(frozen))
    spec = backbone.spec.model_dump()
    own = {key: spec[key] for key in ("model", "overrides", "layer", "facet", "norm", "precision")}
    own["weights"] = str(plan.job("weights", B, "frozen").outputs["tensors"])
    tuned = ("dinov2", True, "checkpoints/dinov2_tiny/last1", "cpu")
    both = UnifiedBackbone(*tuned, views=["plain", "mirrored"], **own)
    picture = torch.rand(1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(both(picture), backbone(picture))
    alone = UnifiedBackbone(*tuned, **own)(picture)  # the same network, which sees one view
    torch.testing.assert_close(normalise(alone), both(picture)[..., : alone.shape[-1]], rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("upsample", 1), ("upsample", 0), ("upsample", 2.7), ("stride", 0), ("stride", -14)]
)
def test_a_store_whose_geometry_is_not_that_of_its_arrays_is_refused(experiment, name, value):
    store = experiment("fetch", "weights", "trunk", "finetune", "adapt").job("adapt", B, "last1", "toy_spair_val")
    path = store.outputs["store"]
    with Store(path, None) as whole:
        image_id = whole.ids()[0]
    with h5py.File(path, "r+") as file:
        file[image_id].attrs[name] = value
    with pytest.raises(UserError, match=rf"{path.name}: damaged \(.*({name}|cells)"):
        describe(path)


def test_own_images_are_matched_on_the_finer_grid(experiment):
    """The centre of a finer cell is found again in the same image; the heatmaps and the pictures are as fine."""
    plan = experiment("fetch", "weights", "trunk", "finetune", "adapt")
    image = next(iter(_images(plan, "toy_spair_val").values()))
    backbone = UnifiedBackbone.from_params(B, "checkpoints/dinov2_tiny/last1", device="cpu")
    _, grid = backbone.network.preprocess(image, backbone.spec.image_size)
    points = grid.cells_to_pixels(np.array([[3.0, 4.0], [grid.shape[1] - 4.0, 7.0]]))
    found = match_images(image, image, points, backbone=B, weights="last1", rule="argmax")
    np.testing.assert_allclose(found.target_points, points, atol=1e-6)
    assert found.heatmaps().shape[1:] == found.target_grid.shape
    assert found.target_grid == grid
    assert grid.pitch == 7
    assert found.objects()[0].shape == grid.shape


def test_matches_on_the_finer_grid_are_in_the_images_pixels():
    """A map whose cells are all different finds each of its own cells where it lies."""
    generator = torch.Generator().manual_seed(0)
    for upsample in (1, 2, 4):
        grid = Grid(image_size=(100, 150), resized_size=(70, 105), stride=14, upsample=upsample)
        features = normalise(torch.randn(*grid.shape, 32, generator=generator))
        cells = np.array([[0.0, 0.0], [grid.shape[1] - 2, 1.0], [2.0, grid.shape[0] - 2]])
        points = grid.cells_to_pixels(cells)
        found, _ = match_points(points, (features, grid), (features, grid), "bilinear", argmax)
        np.testing.assert_allclose(found, points, atol=1e-9)
        assert np.allclose(np.diff(grid.cells_to_pixels(np.array([[0, 0], [1, 1]]))[:, 0]), 14 / upsample / 0.7)


def test_a_picture_of_finer_cells_lies_where_they_do():
    for upsample in (1, 2, 4):
        grid = Grid(image_size=(56, 84), resized_size=(56, 84), stride=14, upsample=upsample)
        heat = np.zeros(grid.shape)
        heat[grid.shape[0] // 2, grid.shape[1] // 4] = 1
        shown = np.asarray(pictures.lay(PillowImage.fromarray(heat.astype(np.float32)), grid, (84, 56)))
        row, column = np.unravel_index(shown.argmax(), shown.shape)
        [[x, y]] = grid.cells_to_pixels(np.array([[grid.shape[1] // 4, grid.shape[0] // 2]], float))
        assert abs(column - x) <= 1
        assert abs(row - y) <= 1


def test_the_cached_mirrored_trunk_trains_like_the_live_one(experiment):
    """The same draws, the same losses, step by step; only the trunk's precision may differ, which is float32 here."""
    steps, alone = {}, [setting("backbones", B, "views", ["plain"])]
    for cached in (True, False):
        plan = experiment(
            "fetch",
            "weights",
            "trunk",
            "finetune",
            changes=[*alone, setting("trunk", "mirrored", cached)],
        )
        job = plan.job("finetune", B, "last1")
        steps[cached] = pd.read_csv(job.outputs["steps"])["loss"].to_numpy()
        with Store(plan.job("trunk", B, "toy_spair_trn").outputs["store"], None) as store:
            assert len(views.plain(store.ids())) * (2 if cached else 1) == len(store.ids())
    np.testing.assert_allclose(steps[True], steps[False], rtol=1e-4)
    plain = experiment(
        "finetune", changes=[*alone, setting("trunk", "mirrored", False), setting("tunings", "last1", "augment", None)]
    )
    without = pd.read_csv(plain.job("finetune", B, "last1").outputs["steps"])["loss"].to_numpy()
    assert not np.allclose(without, steps[True], rtol=1e-2)


def test_mirrored_activations_and_gradients_are_those_of_the_mirrored_image(experiment):
    """From the cache, live, or the mirrored picture itself through the whole network: one loss, one gradient."""
    plan = experiment("fetch", "weights", "trunk")
    spec = plan.params.backbones[B].model_copy(update={"views": ["plain"]})
    job = plan.job("trunk", B, "toy_spair_trn")
    tail = Tail(spec, plan.params.trunk.blocks, torch.device("cpu"), job.inputs["tensors"])
    tail.network.eval()
    tuned = training.Tuned(tail.network, spec, plan.params.tunings["last1"])
    images = dict(list(_images(plan, "toy_spair_trn").items())[:2])
    direction = torch.linspace(-1, 1, HEAD["channels"])

    def gradients(maps) -> dict[str, torch.Tensor]:
        for tensor in tuned.tensors.values():
            tensor.grad = None
        sum((normalise(features) * direction).sum() for features, _ in maps.values()).backward()
        return {name: tensor.grad.clone() for name, tensor in tuned.tensors.items() if tensor.grad is not None}

    with Store(job.outputs["store"], None) as store:
        cached = gradients(tail.forward(store, list(images), mirrored=True))
        plain = gradients(tail.forward(store, list(images)))
    live = gradients(tail.forward_live(images, spec.image_size, mirrored=True))
    flipped = {image_id: ImageOps.mirror(image) for image_id, image in images.items()}
    whole = gradients(tail.forward_live(flipped, spec.image_size))
    assert len(cached) > 5
    for name, gradient in cached.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(live[name], gradient, rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(whole[name], gradient, rtol=0.05, atol=0.02 * scale)  # Pillow rounds to 8 bits
    assert not torch.allclose(plain["upsampler.project.weight"], cached["upsampler.project.weight"], rtol=0.05)


def test_the_head_has_its_own_learning_rate(smoke):
    spec = params.validate(smoke, "smoke").backbones[B]
    tuning = params.Tuning.model_validate(smoke["tunings"]["last1"] | {"head": HEAD})
    tuned = training.Tuned(build(spec), spec, tuning)
    blocks, head = tuned.groups(tuning)
    assert (blocks["factor"], head["factor"]) == (1.0, 3.0)
    both = [*blocks["params"], *head["params"]]
    assert {id(tensor) for tensor in both} == {id(tensor) for tensor in tuned.tensors.values()}
    assert len(both) == len(tuned.tensors)


def test_a_head_of_another_size_is_not_gone_on_with(smoke):
    spec = params.validate(smoke, "smoke").backbones[B]
    tuning = params.Tuning.model_validate(smoke["tunings"]["last1"] | {"head": HEAD})
    network = build(spec)
    first = training.Tuned(network, spec, tuning)
    before = {name: tensor.clone() for name, tensor in first.tensors.items()}
    second = training.Tuned(network, spec, tuning)
    assert all(torch.equal(second.tensors[name], tensor) for name, tensor in before.items())
    for other in (None, HEAD | {"channels": 9}, HEAD | {"upsample": 4}):
        changed = params.Tuning.model_validate(smoke["tunings"]["last1"] | {"head": other})
        with pytest.raises(UserError, match=r"starts from has a head; allowed: \{upsample: 2, channels: 8\}"):
            training.Tuned(network, spec, changed)


def test_a_run_starts_from_the_head_of_another(experiment):
    """At a learning rate of nearly nothing, the second run ends with the first one's blocks and head."""
    job = experiment("fetch", "weights", "trunk", "finetune").job("finetune", B, "last1")
    first = read(job.outputs["tensors"])
    start = job.outputs["tensors"].rename("start.safetensors")
    source = {"path": start.name, "sha256": sha256(start)}
    changes = [setting("tunings", "last1", "start", source), setting("tunings", "last1", "learning_rate", 1e-9)]
    job = experiment("finetune", changes=changes).job("finetune", B, "last1")
    second = read(job.outputs["tensors"])
    assert second.keys() == first.keys()
    assert any(name.startswith("upsampler.") for name in first)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="starts from has a head"):
        experiment("finetune", changes=[*changes, setting("tunings", "last1", "head", None)])
    two = [setting("backbones", B, "layer", [1, 2]), setting("trunk", "blocks", 2)]
    two.append(setting("tunings", "last1", "blocks", 2))
    with pytest.raises(UserError, match=r"head was trained on 48 channels, layer \[1, 2\] has 96"):
        experiment("trunk", "finetune", changes=[*changes, *two])


BAD = [
    (setting("tunings", "last1", "head", {"upsample": 3, "channels": 8}), r"head\.upsample"),
    (setting("tunings", "last1", "head", {"upsample": 2, "channels": 0}), r"head\.channels"),
    (setting("tunings", "last1", "head", {"upsample": 2}), r"head\.channels"),
    (setting("tunings", "last1", "head", HEAD | {"learning_rate": 0}), r"head\.learning_rate"),
    (setting("tunings", "last1", "loss", NARROWING | {"sigma_cells": {"from": 3}}), r"loss\.sigma_cells\.to: missing"),
    (
        setting("tunings", "last1", "loss", NARROWING | {"sigma_cells": {"from": 0, "to": 1}}),
        r"loss\.sigma_cells\.from: ",
    ),
    (setting("tunings", "last1", "loss", NARROWING | {"sigma_cells": -1}), r"loss\.sigma_cells: "),
    (setting("tunings", "last1", "loss", NARROWING | {"sigma_cells": 1e-30}), r"loss\.sigma_cells: "),
    (
        setting("tunings", "last1", "loss", NARROWING | {"sigma_cells": {"from": 1e300, "to": 1}}),
        r"loss\.sigma_cells\.from: ",
    ),
    (setting("tunings", "last1", "head", HEAD | {"learning_rate": 1e300}), r"head\.learning_rate"),
    (setting("backbones", B, "views", []), r"views: \[\]; allowed: \[plain\] or \[plain, mirrored\]"),
    (setting("backbones", B, "views", ["mirrored"]), r"views: \['mirrored'\]; allowed"),
    (setting("backbones", B, "views", ["plain", "plain"]), r"views: .*; allowed"),
    (setting("backbones", B, "views", ["plain", "turned"]), r"views"),
    (setting("backbones", B, "views", ["plain@126"]), r"views: \['plain@126'\]; allowed"),
    (setting("backbones", B, "views", ["plain", "plain@112"]), r"views: .*each once"),  # its own size
    (setting("backbones", B, "views", ["plain", "plain@9"]), r"views: .*allowed: sizes of 16 to 8192 pixels"),
    (setting("backbones", B, "views", ["plain", "plain@126"]), r"trunk\.sizes: \[\] lacks 126, which backbones\.dino"),
    (setting("trunk", "sizes", [9]), r"trunk\.sizes"),
    (setting("trunk", "mirrored", False), r"trunk\.mirrored: false, but backbones\.dinov2_tiny\.views"),
    (setting("trunk", "mirrored", "yes"), r"trunk\.mirrored"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_values_are_refused_at_validation(smoke, change, message):
    values = json.loads(json.dumps(smoke))
    _everything(values)
    params.validate(json.loads(json.dumps(values)), "as it is")
    change(values)
    with pytest.raises(UserError, match=message):
        params.validate(values, "x")


def test_views_that_are_left_out_are_plain_but_dvc_needs_them(experiment, monkeypatch):
    changes = [lambda values: values["backbones"][B].pop("views"), setting("trunk", "mirrored", False)]
    plan = experiment("validate", "fetch", "weights", "extract", changes=changes)
    assert plan.job("extract", B, "frozen", "toy_spair_val").settings[f"backbones.{B}.views"] == ["plain"]
    monkeypatch.setenv("DVC_STAGE", "validate")
    with pytest.raises(UserError, match=rf"backbones\.{B}\.views is missing, which dvc\.yaml reads\. Run: semcorr fix"):
        experiment("validate", changes=changes)


def test_heatmaps_of_both_views():
    """Source descriptors are sampled from the joined map, so a keypoint between cells is between both views' cells."""
    grid = Grid(image_size=(56, 56), resized_size=(56, 56), stride=14)
    generator = torch.Generator().manual_seed(0)
    plain, other = (torch.randn(4, 4, 8, generator=generator) for _ in range(2))
    both = normalise(views.joined([views.Seen(plain, grid, False), views.Seen(other, grid, True)])[0])
    cells = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    found = heatmaps(sample(both, cells, "bilinear"), both)
    mirrored = normalise(other).flip(1)
    one = heatmaps(sample(normalise(plain), cells, "bilinear"), normalise(plain))
    two = heatmaps(sample(mirrored, cells, "bilinear"), mirrored)
    torch.testing.assert_close(found, (one + two) / 2)


SIZES = ["plain", "mirrored", "plain@154", "mirrored@70"]


def _several(values: dict) -> None:
    """Views at three sizes."""
    values["backbones"][B]["views"] = SIZES
    values["trunk"]["sizes"] = [70, 154]


def _looked_up(features: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit vectors (N, C) at fractional cells, by numpy; those beyond the outermost centres are the border's."""
    height, width = features.shape[:2]
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    top = (1 - fx) * unit[y0, x0] + fx * unit[y0, x1]
    value = (1 - fy) * top + fy * ((1 - fx) * unit[y1, x0] + fx * unit[y1, x1])
    return value / np.linalg.norm(value, axis=-1, keepdims=True)


def test_views_at_several_sizes_average_the_similarity(experiment):
    """On the grid of the largest; each view's part is what that view alone has at the same place of the image."""
    plan = experiment("fetch", "weights", "extract", changes=[_several])
    job, spec = plan.job("extract", B, "frozen", "toy_spair_val"), plan.params.backbones[B]
    network = load(build(spec), job.inputs["tensors"])
    channels = network.channels(spec)
    with Store(job.outputs["store"], None) as store:
        for image_id, image in list(_images(plan, "toy_spair_val").items())[:3]:
            array, grid = store.array(image_id), store.grid(image_id)
            assert max(grid.resized_size) == 154
            assert array.shape == (*grid.shape, 4 * channels)
            rows, columns = np.mgrid[: grid.shape[0], : grid.shape[1]]
            high, wide = (small / large for small, large in zip(grid.resized_size, grid.image_size, strict=True))
            x, y = (columns.ravel() * 14 + 7) / wide, (rows.ravel() * 14 + 7) / high  # from the image's corner
            for part, (mirrored, size) in enumerate([(False, 112), (True, 112), (False, 154), (True, 70)]):
                pixels, own = network.preprocess(ImageOps.mirror(image) if mirrored else image, size)
                with torch.inference_mode():
                    alone = network.features(pixels[None], spec)[0].permute(1, 2, 0)[: own.shape[0], : own.shape[1]]
                scale = [small / large for small, large in zip(own.resized_size, own.image_size, strict=True)]
                there = (image.width - x if mirrored else x) * scale[1] / 14 - 0.5
                expected = _looked_up(alone.numpy(), there, y * scale[0] / 14 - 0.5).reshape(*grid.shape, channels)
                found = array[..., part * channels : (part + 1) * channels]
                # Pillow's resampling of a mirrored image differs in the last bit.
                np.testing.assert_allclose(found, expected, atol=2e-3 if mirrored else 1e-4)


def test_the_trunk_holds_other_sizes_but_not_of_what_is_trained_on(experiment):
    plan = experiment("fetch", "weights", "trunk", changes=[_several])
    job, spec = plan.job("trunk", B, "toy_spair_val"), plan.params.backbones[B]
    network = load(build(spec), job.inputs["tensors"])
    first = network.stop(spec) - plan.params.trunk.blocks
    images = _images(plan, "toy_spair_val")
    with Store(job.outputs["store"], None) as store:
        assert len(store.ids()) == 6 * len(images)
        assert sorted(views.plain(store.ids())) == sorted(images)
        image_id, image = next(iter(images.items()))
        for size in (112, 70, 154):
            pixels, grid = network.preprocess(image, size)
            for mirrored in (False, True):
                name = views.named(image_id, mirrored=mirrored, size=None if size == 112 else size)
                shown = network.mirrored(pixels, grid) if mirrored else pixels
                with torch.inference_mode():
                    expected = network.trunk(shown[None], first)[0].numpy()
                np.testing.assert_allclose(store.array(name), expected, atol=1e-4)
                assert store.grid(name) == grid
    with Store(plan.job("trunk", B, "toy_spair_trn").outputs["store"], None) as store:
        assert len(store.ids()) == 2 * len(_images(plan, "toy_spair_trn"))


def test_tuned_features_of_several_sizes_are_those_of_own_images(experiment):
    """The stage adapt, from the trunk's sizes, and a Matcher, from the image; training knows of neither."""
    plan = experiment("fetch", "weights", "trunk", "finetune", "adapt", changes=[_several])
    first = read(plan.job("finetune", B, "last1").outputs["tensors"])
    matcher = Matcher(B, "last1", "argmax")
    with Store(plan.job("adapt", B, "last1", "toy_spair_val").outputs["store"], None) as store:
        for image_id, image in list(_images(plan, "toy_spair_val").items())[:3]:
            features, grid = matcher.features(image)
            assert store.grid(image_id) == grid
            assert grid.upsample == 2
            found = torch.from_numpy(store.array(image_id))
            assert found.shape == (*grid.shape, 4 * HEAD["channels"])
            torch.testing.assert_close(normalise(found), features.cpu(), rtol=0, atol=1e-4)
    again = experiment("trunk", "finetune")  # with the usual two views
    second = read(again.job("finetune", B, "last1").outputs["tensors"])
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    backbone = UnifiedBackbone.from_params(B, "checkpoints/dinov2_tiny/last1", device="cpu")
    assert backbone.grid((56, 84)).resized_size == (56, 84)


def test_the_api_sees_other_sizes_in_proportion(experiment):
    """An image that is given as large as `image_size` is seen as the stages see it, but for how it was resized."""
    plan = experiment("fetch", "weights", "extract", changes=[_several])
    backbone = UnifiedBackbone.from_params(B, device="cpu")
    image_id, image = next(iter(_images(plan, "toy_spair_val").items()))
    pixels, grid = backbone.network.preprocess(image, 112)
    height, width = grid.resized_size
    found = backbone.extract_features(pixels[None, :, :height, :width])[0]
    assert backbone.grid((height, width)).shape == found.shape[:2]
    with Store(plan.job("extract", B, "frozen", "toy_spair_val").outputs["store"], None) as store:
        expected = torch.from_numpy(store.array(image_id))
    assert found.shape == expected.shape
    assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.8
