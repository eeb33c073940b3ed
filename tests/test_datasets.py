"""Readers on folders of the true formats: what the toy pen wrote, the real files beside the project, and damage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from semcorr.datasets import pfwillow, spair, toy
from semcorr.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "datasets"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real benchmark files are not at {SHARED}")


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    toy.write_spair(root / "spair", seed=5, images={"trn": 3, "val": 2, "test": 2})
    toy.write_pfwillow(root / "willow", seed=5, images={"all": 3})
    return root


@pytest.fixture
def spair_root(toy_root, tmp_path):
    return Path(shutil.copytree(toy_root / "spair", tmp_path / "spair"))


@pytest.fixture
def willow_root(toy_root, tmp_path):
    return Path(shutil.copytree(toy_root / "willow", tmp_path / "willow"))


def test_toy_spair_is_a_spair_folder(toy_root):
    splits = {split: spair.read(toy_root / "spair", split, "large") for split in spair.SPLITS}
    images = [{image.id for image in benchmark.images} for benchmark in splits.values()]
    assert not images[0] & images[1]
    assert not images[0] & images[2]
    assert not images[1] & images[2]
    for split, benchmark in splits.items():
        small = spair.read(toy_root / "spair", split, "small")
        assert {pair.id for pair in small.pairs} < {pair.id for pair in benchmark.pairs}
    training = splits["trn"]
    assert len({image.category for image in training.images}) >= 6
    ids = {category: set() for category in toy.CATEGORIES}
    for pair in training.pairs:
        ids[pair.category] |= set(pair.keypoint_ids)
        assert len(pair.keypoint_ids) >= toy.MIN_COMMON
    assert min(map(len, ids.values())) >= 6
    for image in training.images:
        assert (toy_root / "spair" / "Segmentation" / f"{image.id}.png").is_file()


def test_toy_keypoints_lie_on_their_object():
    """Every visible keypoint is on the object's mask, and inside its box."""
    for index, category in enumerate(toy.CATEGORIES):
        for seed in range(6):
            scene = toy.render(category, np.random.default_rng([11, index, seed]))
            mask = np.array(scene.mask)
            x0, y0, x1, y1 = scene.bbox
            for x, y in scene.keypoints.values():
                assert mask[round(y), round(x)] == 255
                assert x0 - 0.5 <= x <= x1
                assert y0 - 0.5 <= y <= y1


def test_toy_sides_change_in_the_mirror():
    """A dog that faces right shows its right eye: the keypoint is named after the dog's side, not the picture's."""
    seen = set()
    for seed in range(30):
        scene = toy.render("dog", np.random.default_rng(seed))
        eyes = {name for name in scene.keypoints if name.endswith("_eye")}
        assert eyes <= {"right_eye" if scene.mirrored else "left_eye"}
        seen |= eyes
    assert seen == {"left_eye", "right_eye"}


def test_toy_is_drawn_from_its_seed(tmp_path):
    for name in ("a", "b"):
        toy.write_spair(tmp_path / name, seed=3, images={"trn": 2})
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_toy_willow_is_a_willow_folder(toy_root):
    benchmark = pfwillow.read(toy_root / "willow")
    assert len(benchmark.images) == 4 * 3
    assert len(benchmark.pairs) == 4 * 3 * 2
    assert {len(pair.keypoint_ids) for pair in benchmark.pairs} == {10}


@shared
def test_real_pf_willow():
    benchmark = pfwillow.read(SHARED / "PF-dataset")
    assert len(benchmark.images) == 100
    assert len(benchmark.pairs) == 900
    assert len({pair.subset for pair in benchmark.pairs}) == 10
    assert {pair.category for pair in benchmark.pairs} == {"car", "duck", "motorbike", "winebottle"}
    first = benchmark.pairs[0]
    points = scipy.io.loadmat(SHARED / "PF-dataset" / f"{first.source}.mat")["pts_coord"]
    np.testing.assert_array_equal(np.array(first.source_keypoints), points.T)


@shared
def test_real_spair_annotations(tmp_path):
    """Real annotation files, with images of the annotated sizes made here."""
    root = Path(shutil.copytree(SHARED / "spair-annotation-sample", tmp_path / "spair", copy_function=shutil.copyfile))
    files = sorted((root / "PairAnnotation" / "test").glob("*.json"))
    (root / "Layout" / "large").mkdir(parents=True, mode=0o755)
    (root / "Layout" / "large" / "test.txt").write_text("\n".join(file.stem for file in files))
    for file in files:
        values = json.loads(file.read_text())
        for side in ("src", "trg"):
            path = root / "JPEGImages" / values["category"] / values[f"{side}_imname"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", tuple(values[f"{side}_imsize"][:2])).save(path)
    pairs = {pair.id: pair for pair in spair.read(root, "test", "large").pairs}
    assert len(pairs) == 3
    plane = pairs["000006-2008_002719-2008_007604:aeroplane"]
    assert plane.source_keypoints[0] == [212.0, 153.0]
    assert plane.target_bbox == [1.0, 25.0, 333.0, 494.0]
    assert (plane.viewpoint_variation, plane.scale_variation, plane.truncation, plane.occlusion) == (
        1,
        1,
        2,
        0,
    )
    assert plane.keypoint_ids == ["0", "16", "18", "19", "23"]


def _first_annotation(root: Path) -> Path:
    name = (root / "Layout/large/test.txt").read_text().split()[0]
    return root / "PairAnnotation/test" / f"{name}.json"


def _edit(root: Path, change) -> None:
    path = _first_annotation(root)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _resize_image(root: Path) -> None:
    values = json.loads(_first_annotation(root).read_text())
    Image.new("RGB", (50, 40)).save(root / "JPEGImages" / values["category"] / values["src_imname"])


def _remove_image(root: Path) -> None:
    values = json.loads(_first_annotation(root).read_text())
    (root / "JPEGImages" / values["category"] / values["src_imname"]).unlink()


def _append(root: Path, line: str) -> None:
    path = root / "Layout/large/test.txt"
    path.write_text(path.read_text() + line + "\n")


SPAIR_DAMAGE = {
    "no layout": (
        lambda root: (root / "Layout/large/test.txt").unlink(),
        r"test\.txt: the list of pairs is missing",
    ),
    "empty layout": (
        lambda root: (root / "Layout/large/test.txt").write_text(""),
        "the list of pairs is empty",
    ),
    "bad line": (lambda root: _append(root, "nonsense"), r"test\.txt:\d+: 'nonsense' is no pair name"),
    "twice": (lambda root: _append(root, _first_annotation(root).stem), "stands here twice"),
    "no annotation": (lambda root: _first_annotation(root).unlink(), "no such file"),
    "not JSON": (lambda root: _first_annotation(root).write_text("{"), "not valid JSON"),
    "not an object": (
        lambda root: _first_annotation(root).write_text("[1]"),
        "not an annotation of SPair-71k",
    ),
    "no key": (lambda root: _edit(root, lambda v: v.pop("trg_kps")), "key 'trg_kps' is missing"),
    "counts": (lambda root: _edit(root, lambda v: v["src_kps"].pop()), r"\d+ source keypoints, \d+ target"),
    "outside": (
        lambda root: _edit(root, lambda v: v["src_kps"].__setitem__(0, [999, 5])),
        r"\[999.0, 5.0\] is outside",
    ),
    "box": (
        lambda root: _edit(root, lambda v: v.update(trg_bndbox=[5, 5, 5, 9])),
        "target box .* has no area",
    ),
    "other pair": (lambda root: _edit(root, lambda v: v.update(src_imname="x.jpg")), "it is about x and"),
    "text for number": (
        lambda root: _edit(root, lambda v: v.update(mirror="no")),
        "not an annotation of SPair-71k",
    ),
    "no image": (_remove_image, "the image is missing"),
    "other size": (_resize_image, r"says that .* pixels, but it has 50 x 40"),
}


@pytest.mark.parametrize("case", SPAIR_DAMAGE)
def test_damaged_spair(spair_root, case):
    damage, message = SPAIR_DAMAGE[case]
    damage(spair_root)
    with pytest.raises(UserError, match=message):
        spair.read(spair_root, "test", "large")


def _mat(root: Path, **values) -> None:
    scipy.io.savemat(root / "car(T)" / "Car_000.mat", values)


WILLOW_DAMAGE = {
    "no pts_coord": (lambda root: _mat(root, other=1), "Car_000.mat: holds no pts_coord"),
    "nine points": (
        lambda root: _mat(root, pts_coord=np.zeros((2, 9))),
        r"has shape \(2, 9\), expected \(2, 10\)",
    ),
    "nan": (lambda root: _mat(root, pts_coord=np.full((2, 10), np.nan)), "finite"),
    "outside": (lambda root: _mat(root, pts_coord=np.full((2, 10), 999.0)), "outside the image"),
    "no mat": (lambda root: (root / "car(T)/Car_000.mat").unlink(), "Car_000.mat: is missing"),
    "no image": (lambda root: (root / "car(T)/Car_000.png").unlink(), "Car_000.png: is missing"),
    "not a mat": (
        lambda root: (root / "car(T)/Car_000.mat").write_bytes(b"x" * 300),
        "not a readable .mat file",
    ),
    "not an image": (
        lambda root: (root / "car(T)/Car_000.png").write_bytes(b"x" * 300),
        "not a readable image",
    ),
    "another folder": (
        lambda root: [shutil.rmtree(path) for path in root.iterdir()],
        "no folder in PF-WILLOW's format",
    ),
}


@pytest.mark.parametrize("case", WILLOW_DAMAGE)
def test_damaged_willow(willow_root, case):
    damage, message = WILLOW_DAMAGE[case]
    damage(willow_root)
    with pytest.raises(UserError, match=message):
        pfwillow.read(willow_root)
