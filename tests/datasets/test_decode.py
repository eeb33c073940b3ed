"""The one decoder: datasets, the API, pictures and own images see the same colours; only own images are turned."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import PngImagePlugin

import semcorr
from semcorr.api import images
from semcorr.datasets import spair, toy, verify
from semcorr.datasets.base import read_images
from semcorr.datasets.decode import decode, image_size, orientation
from semcorr.errors import UserError
from semcorr.networks.backbones.base import pixels_of
from semcorr.params import validate_dataset

ORIENTATION = 0x0112


@pytest.fixture
def willow(tmp_path) -> Path:
    """PF-WILLOW's format, drawn; and its first image."""
    toy.write_pfwillow(tmp_path / "W", seed=3, images={"all": 2})
    return tmp_path / "W"


def _first(root: Path) -> Path:
    return sorted(root.glob("*/*.png"))[0]


def _grey(root: Path) -> np.ndarray:
    with PillowImage.open(_first(root)) as image:
        return np.asarray(image.convert("L"))


def _seen(root: Path) -> np.ndarray:
    """The first image as the API sees it at its own size, (H, W, 3) in [0, 1]."""
    with PillowImage.open(_first(root)) as image:
        side = max(image.size)
    return semcorr.PFWillowDataset(root, long_side=side, normalize=False)[0]["src_img"].permute(1, 2, 0).numpy()


MODES = {
    "8 bits": lambda grey: PillowImage.fromarray(grey),
    "16 bits": lambda grey: PillowImage.fromarray(grey.astype(np.uint16) * 257),
    "opaque": lambda grey: PillowImage.fromarray(np.dstack([grey, np.full_like(grey, 255)]), "LA"),
    "palette": lambda grey: PillowImage.fromarray(grey).convert("P"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_dataset_shows_the_colours_that_a_mode_stands_for(willow, mode):
    """The dataset's pixels, those that fetch stores for the stages, and own images: all are the grey that was saved."""
    grey = _grey(willow)
    MODES[mode](grey).save(_first(willow))
    expected = np.repeat(grey[..., None], 3, axis=2) / 255
    np.testing.assert_allclose(_seen(willow), expected, atol=1 / 255 + 1e-6)
    np.testing.assert_allclose(np.asarray(images.open_image(_first(willow))) / 255, expected, atol=1 / 255 + 1e-6)


def test_hidden_colours_stay_hidden(willow):
    """Where alpha is zero an image is white, whatever colour the file keeps there."""
    grey = _grey(willow)
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    PillowImage.fromarray(clear, "RGBA").save(_first(willow))
    assert (_seen(willow) == 1).all()


def test_a_float_picture_is_not_black(tmp_path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    PillowImage.fromarray(values).save(tmp_path / "a.tiff")
    shown = np.asarray(decode(tmp_path / "a.tiff", upright=False)).astype(int)
    assert np.abs(shown - np.round(255 * values)[..., None]).max() <= 1


def test_a_network_is_given_rgb_alone():
    with pytest.raises(ValueError, match="mode is I;16, expected RGB"):
        pixels_of(PillowImage.fromarray(np.zeros((4, 4), np.uint16)))


def _marked() -> PillowImage.Image:
    """30 x 20 pixels, one of them white."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[4, 7] = 255
    return PillowImage.fromarray(pixels)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_dataset_counts_pixels_as_they_are_stored(tmp_path, turn):
    exif = PillowImage.Exif()
    exif[ORIENTATION] = turn
    _marked().save(tmp_path / "a.png", exif=exif)
    assert image_size(tmp_path / "a.png") == (20, 30)
    stored = np.asarray(decode(tmp_path / "a.png", upright=False))
    assert np.argwhere(stored[..., 0] == 255).tolist() == [[4, 7]]
    upright = decode(tmp_path / "a.png", upright=True)
    assert upright.size == ((30, 20) if turn < 5 else (20, 30))
    with PillowImage.open(tmp_path / "a.png") as image:
        assert orientation(image) == turn


ODD = {  # tag, type, count, value: each is read, and cannot be written back
    "a resolution that is text": (0x011A, 2, 2, b"a"),
    "a width that is text": (0x0100, 2, 2, b"a"),
    "a width below zero": (0x0100, 9, 1, struct.pack("<i", -5)),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_exif_tag_does_not_keep_a_photo_from_being_turned(tmp_path, odd):
    entries = sorted([(ORIENTATION, 3, 1, struct.pack("<H", 6)), ODD[odd]])
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack("<HHI4s", tag, kind, count, value)
    _marked().save(tmp_path / "odd.jpg", exif=block + bytes(4), quality=95)
    assert images.open_image(tmp_path / "odd.jpg").size == (20, 30)


def test_a_block_that_is_no_exif(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add(b"eXIf", b"no exif")
    _marked().save(tmp_path / "none.png", pnginfo=info)
    assert images.open_image(tmp_path / "none.png").size == (30, 20)


def test_check_counts_images_that_viewers_turn(tmp_path):
    root = tmp_path / "spair"
    toy.write_spair(root, seed=5, images={"trn": 2, "val": 2, "test": 2})
    spec = verify.recognise(root, "any")
    assert "EXIF" not in "\n".join(verify.check(spec, root))
    for path in sorted(root.glob("JPEGImages/*/*.jpg"))[:3]:
        exif = PillowImage.Exif()
        exif[ORIENTATION] = 6
        with PillowImage.open(path) as image:
            image.copy().save(path, exif=exif)
    assert "3 images have an EXIF orientation other than 1" in "\n".join(verify.check(spec, root))


def test_an_annotation_of_the_turned_image_is_told_about_exif(tmp_path):
    """A labelling tool showed the image upright, the file holds it sideways: the error of their sizes says why."""
    root = tmp_path / "spair"
    toy.write_spair(root, seed=5, images={"trn": 2, "val": 2, "test": 2})
    path = root / "JPEGImages" / f"{spair.read(root, 'test', 'large').images[0].id}.jpg"
    exif = PillowImage.Exif()
    exif[ORIENTATION] = 6
    with PillowImage.open(path) as image:
        image.transpose(PillowImage.Transpose.ROTATE_90).save(path, exif=exif)
    with pytest.raises(UserError, match=r"has \d+ x \d+ pixels, but .* EXIF orientation is 6: the annotation is for"):
        spair.read(root, "test", "large")


def test_fetch_keeps_the_files_and_the_stages_see_their_colours(willow, tmp_path, monkeypatch, smoke):
    """Through the stage: a 16-bit picture is stored as it is, and the network is shown what the API shows."""
    from semcorr import cli, params
    from semcorr.artifacts.files import write_json
    from semcorr.datasets.base import read_image
    from semcorr.engine import graph

    grey = _grey(willow)
    MODES["16 bits"](grey).save(_first(willow))
    monkeypatch.chdir(tmp_path)
    values = smoke | {"datasets": dict(smoke["datasets"])}
    values["datasets"]["toy_willow"] = smoke["datasets"]["toy_willow"] | {"sources": [{"kind": "path", "path": "W"}]}
    validate_dataset(values["datasets"]["toy_willow"])
    write_json(tmp_path / "params.yaml", values)
    cli.run_stage(cli.parser().parse_args(["fetch", "toy_willow"]))
    job = graph.Graph(params.load()).job("fetch", "toy_willow")
    image = read_images(job.outputs["images"])[0]
    shown = read_image(job.outputs["folder"], image)
    np.testing.assert_array_equal(np.asarray(shown), np.repeat(grey[..., None], 3, axis=2))
