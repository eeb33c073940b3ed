"""Readers on folders of the true formats: what the toy pen wrote, the real files beside the project, and damage."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from semcorr import cli, params
from semcorr.datasets import ap10k, base, pfpascal, pfwillow, spair, toy, verify
from semcorr.errors import UserError

SHARED = Path(os.environ.get("SEMCORR_DATA", Path(__file__).parents[3] / "shared/datasets"))
shared = pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="needs real files (docs/datasets.md) in a folder that SEMCORR_DATA names: PF-WILLOW as PF-dataset, and "
    "three pairs of SPair-71k's test with their annotations as spair-annotation-sample",
)


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


@pytest.mark.parametrize("lists", [True, False])
def test_other_annotations_of_the_same_images(spair_root, tmp_path, monkeypatch, lists):
    """As SPair-U: its folders, without images, beside the dataset's own; half of each point's x, and another name."""
    monkeypatch.chdir(tmp_path)
    own = spair.read(spair_root, "test", "large")
    other = tmp_path / "SPair-U"
    for folder in ("PairAnnotation", *(["Layout", "ImageAnnotation"] if lists else [])):
        shutil.copytree(spair_root / folder, other / folder)
    for path in other.glob("*Annotation/**/*.json"):
        values = json.loads(path.read_text())
        for side in ("src_kps", "trg_kps"):
            values |= {side: [[x // 2, y] for x, y in values[side]]} if side in values else {}
        if "kps" in values:
            values["kps"] = {f"new{id_}": xy and [xy[0] // 2, xy[1]] for id_, xy in values["kps"].items()}
        else:
            values["kps_ids"] = [f"new{id_}" for id_ in values["kps_ids"]]
        path.write_text(json.dumps(values))
    entry = {"format": "spair", "expect": "any", "sources": [{"kind": "path", "path": str(spair_root)}]}
    entry |= spair.WHOLE | {"annotations": "SPair-U"}
    spec = params.SPairSpec.model_validate(entry)
    found = spair.load(spair_root, spec)
    assert found.root == own.root
    assert [pair.id for pair in found.pairs] == [pair.id for pair in own.pairs]
    for new, old in zip(found.pairs, own.pairs, strict=True):
        assert new.keypoint_ids == [f"new{id_}" for id_ in old.keypoint_ids]
        np.testing.assert_array_equal(new.points("source"), old.points("source") // [2, 1])
    assert {image.file for image in found.images} == {image.file for image in own.images}
    assert {id_[:3] for image in found.images for id_ in image.keypoint_ids} == {"new"}
    with pytest.raises(UserError, match="SPair-V: `annotations`: holds no PairAnnotation"):
        spair.load(spair_root, params.SPairSpec.model_validate(entry | {"annotations": "SPair-V"}))


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
    for folder in (root, *root.rglob("*/")):
        folder.chmod(0o755)  # real files may be shared, and not to be written
    (root / "Layout" / "large").mkdir(parents=True)
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
    "bad line": (lambda root: _append(root, "nonsense"), r"test\.txt:\d+: 'nonsense' is not a pair name"),
    "twice": (lambda root: _append(root, _first_annotation(root).stem), "is listed twice"),
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
    "other pair": (lambda root: _edit(root, lambda v: v.update(src_imname="x.jpg")), "it pairs x and"),
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
    "MATLAB 7.3": (  # its head, as MATLAB writes it; scipy reads older versions
        lambda root: (root / "car(T)/Car_000.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"),
        "not a readable .mat file .*v7.3",
    ),
    "not an image": (
        lambda root: (root / "car(T)/Car_000.png").write_bytes(b"x" * 300),
        "not a readable image",
    ),
    "another folder": (
        lambda root: [shutil.rmtree(path) for path in root.iterdir()],
        "not in PF-WILLOW's format",
    ),
}


@pytest.mark.parametrize("case", WILLOW_DAMAGE)
def test_damaged_willow(willow_root, case):
    damage, message = WILLOW_DAMAGE[case]
    damage(willow_root)
    with pytest.raises(UserError, match=message):
        pfwillow.read(willow_root)


def _check(root: Path, expect: str = "any") -> list[str]:
    return verify.check(verify.recognise(root, expect), root)


def _truncate(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def _first_image(root: Path) -> Path:
    values = json.loads(_first_annotation(root).read_text())
    return root / "JPEGImages" / values["category"] / values["src_imname"]


def _image_annotation(root: Path, change: Callable[[dict], object]) -> None:
    image = _first_image(root)
    path = root / "ImageAnnotation" / image.parent.name / f"{image.stem}.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _mask(root: Path) -> Path:
    image = _first_image(root)
    return root / "Segmentation" / image.parent.name / f"{image.stem}.png"


def _move_to_training(root: Path) -> None:
    """A pair of test stands in the training list too, with its annotation."""
    path = _first_annotation(root)
    shutil.copy(path, root / "PairAnnotation/trn" / path.name)
    with (root / "Layout/large/trn.txt").open("a") as file:
        file.write(path.stem + "\n")


def _same_pair_again(root: Path) -> None:
    """The first pair once more, under another number."""
    path = _first_annotation(root)
    line = "999999" + path.stem[6:]
    shutil.copy(path, path.with_name(f"{line}.json"))
    _append(root, line)


WHOLE_DAMAGE = {
    "truncated JPEG": (lambda root: _truncate(_first_image(root), 0.6), r"\.jpg: not a readable image .*truncated"),
    "empty JPEG": (lambda root: _truncate(_first_image(root), 0), r"\.jpg: not a readable image"),
    "across splits": (_move_to_training, r"Layout: image \w+/\w+ is in both trn and test"),
    "same pair, other number": (_same_pair_again, r"test\.txt: pair 999999-.* is listed twice \(as 0"),
    "small list": (
        lambda root: (root / "Layout/small/test.txt").write_text("000001-a-b:dog\n"),
        r"small/test\.txt: 000001-a-b:dog is not in the large list",
    ),
    "no mask": (lambda root: _mask(root).unlink(), r"Segmentation/.*\.png: is missing, its image exists"),
    "mask of another size": (
        lambda root: Image.new("L", (9, 9)).save(_mask(root)),
        r"\.png: the mask has another size than its image",
    ),
    "damaged mask": (lambda root: _mask(root).write_bytes(b"x"), r"Segmentation/.*\.png: not a readable image"),
    "annotation of another size": (
        lambda root: _image_annotation(root, lambda values: values.update(image_width=7)),
        r"ImageAnnotation/.*\.json: says that .* has 7 x \d+ pixels, but it has",
    ),
    "annotation without azimuth": (
        lambda root: _image_annotation(root, lambda values: values.pop("azimuth_id")),
        r"ImageAnnotation/.*\.json: key 'azimuth_id' is missing",
    ),
    "layout is no text": (
        lambda root: (root / "Layout/large/test.txt").write_bytes(b"\xff\xfe\x00"),
        r"test\.txt: not text",
    ),
    "a path for a category": (
        lambda root: _append(root, "000001-a-b:../../x"),
        "'000001-a-b:../../x' is not a pair name",
    ),
    "NaN": (
        lambda root: _edit(root, lambda v: v["trg_kps"].__setitem__(0, [float("nan"), 5])),
        r"target keypoint \[nan, 5.0\] is outside",
    ),
    "deep JSON": (lambda root: _first_annotation(root).write_text("[" * 100_000), "not valid JSON"),
}


@pytest.mark.parametrize("case", WHOLE_DAMAGE)
def test_damaged_folder(spair_root, case):
    damage, message = WHOLE_DAMAGE[case]
    damage(spair_root)
    with pytest.raises(UserError, match=message):
        _check(spair_root)


def test_check_says_what_is_there(toy_root):
    lines = _check(toy_root / "spair")
    counts = {split: len(spair.read_layout(toy_root / "spair", split, "large")) for split in spair.SPLITS}
    assert lines[1] == f"large: trn {counts['trn']}, val {counts['val']}, test {counts['test']}"
    assert lines[3] == "8 categories, 56 images, 56 annotations, 56 masks"
    assert lines[-1].startswith(f"test: 16 images, {counts['test']} pairs, ")
    assert _check(toy_root / "willow")[1:] == [
        "4 sub-sets, 12 images, as many .mat files",
        "all: 12 images, 24 pairs, 240 keypoints",
    ]


@pytest.mark.parametrize(("name", "expect"), [("spair", "spair71k"), ("willow", "pfwillow")])
def test_what_must_be_the_benchmark_itself(toy_root, name, expect):
    with pytest.raises(UserError, match=r"(SPair-71k|PF-WILLOW) has .*set `expect: any` if the data are your own"):
        _check(toy_root / name, expect)


def test_check_on_the_command_line(spair_root, capsys, monkeypatch):
    cli.main(["check", str(spair_root)])
    assert "All of it was verified." in capsys.readouterr().out
    _truncate(_first_image(spair_root), 0.5)
    for arguments in (["check", str(spair_root)], ["check", str(spair_root), "--expect", "nonsense"]):
        with pytest.raises(SystemExit) as raised:
            cli.main(arguments)
        assert raised.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_only_some_categories(toy_root, capsys):
    """Pairs and images of others are left out and counted; an unknown one is an error that says what there is."""
    whole = spair.read(toy_root / "spair", "test", "large")
    kept = whole.only(["dog", "car"])
    assert {pair.category for pair in kept.pairs} == {image.category for image in kept.images} == {"dog", "car"}
    assert kept.pairs == [pair for pair in whole.pairs if pair.category in ("dog", "car")]
    assert kept.left_out == {"pairs of other categories": len(whole.pairs) - len(kept.pairs)}
    assert whole.only(None) is whole
    with pytest.raises(UserError, match="holds no pairs of category zebra; it has bicycle, bird, car"):
        whole.only(["dog", "zebra"])
    cli.main(["check", str(toy_root / "spair"), "--categories", "dog", "car"])
    assert f"test: {len(kept.images)} images, {len(kept.pairs)} pairs, " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["check", str(toy_root / "spair"), "--categories", "zebra"])
    assert "no split holds pairs of category zebra; allowed: bicycle, bird, car" in capsys.readouterr().err


def test_a_part_of_the_images_and_the_rest(toy_root):
    """No image is in both, pairs between the two are in neither, and other seeds draw other images."""
    whole = spair.read(toy_root / "spair", "trn", "large")

    def within(**part) -> tuple[set[str], set[str]]:
        kept = whole.within(params.Part.model_validate({"seed": 0, "fraction": 0.5, "keep": "part"} | part))
        return {image.id for image in kept.images}, {pair.id for pair in kept.pairs}

    (part, part_pairs), (rest, rest_pairs) = within(), within(keep="rest")
    assert not part & rest
    assert not part_pairs & rest_pairs
    left_out = [pair for pair in whole.pairs if pair.id not in part_pairs | rest_pairs]
    assert left_out
    assert not any({pair.source, pair.target} <= images for pair in left_out for images in (part, rest))
    assert part
    assert rest
    fifth = params.Part(seed=0, fraction=0.2, keep="part")
    assert sum(base.in_part(f"{number}.jpg", fifth) for number in range(2000)) == pytest.approx(400, abs=60)
    assert within() == (part, part_pairs)
    assert within(seed=1)[0] != part
    assert within(fraction=0.9)[0] >= part  # a larger one holds the smaller
    category = whole.pairs[0].category
    alone = whole.only([category]).within(params.Part(seed=0, fraction=0.5, keep="part"))
    assert {pair.id for pair in alone.pairs} == {
        p.id for p in whole.pairs if p.id in part_pairs and p.category == category
    }
    assert whole.within(None) is whole


def test_an_image_knows_all_its_keypoints(toy_root, spair_root):
    """From its annotation; without one, from its pairs."""
    for image in spair.read(toy_root / "spair", "test", "large").images:
        points = spair.read_image_annotation(toy_root / "spair", image.id)["kps"]
        assert dict(zip(image.keypoint_ids, image.keypoints, strict=True)) == {k: v for k, v in points.items() if v}
    shutil.rmtree(spair_root / "ImageAnnotation")
    benchmark = spair.read(spair_root, "test", "large")
    known = {image.id: dict(zip(image.keypoint_ids, image.keypoints, strict=True)) for image in benchmark.images}
    for pair in benchmark.pairs:
        for id_, point in zip(pair.keypoint_ids, pair.target_keypoints, strict=True):
            assert known[pair.target][id_] == point


def test_spair_image_annotations(toy_root):
    benchmark = spair.read(toy_root / "spair", "test", "large")
    for image in benchmark.images:
        annotation = spair.read_image_annotation(toy_root / "spair", image.id)
        assert (image.pose, image.azimuth) == (annotation["pose"], annotation["azimuth_id"])
    pair = benchmark.pairs[0]
    points = spair.read_image_annotation(toy_root / "spair", pair.source)["kps"]
    assert [points[id_] for id_ in pair.keypoint_ids] == pair.source_keypoints


def test_an_unlabelled_custom_folder_is_welcome(spair_root):
    """Fewer pairs, no masks, no image annotations, one split."""
    for folder in ("Segmentation", "ImageAnnotation", "Layout/small"):
        shutil.rmtree(spair_root / folder)
    for split in ("trn", "val"):
        (spair_root / "Layout/large" / f"{split}.txt").unlink()
    lines = _check(spair_root)
    assert "0 annotations, 0 masks" in lines[3]
    assert len(lines) == 5
    assert spair.read(spair_root, "test", "large").images[0].azimuth is None


def _willow_list(root: Path, path: Path, shift: float = 0.0) -> list[tuple[str, str]]:
    """Write the field's CSV: some pairs, in an order of their own; returns their ids."""
    benchmark = pfwillow.read(root)
    chosen = benchmark.pairs[::-5]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["imageA", "imageB", *(f"{axis}{side}{n}" for side in "AB" for axis in "XY" for n in range(1, 11))]
        )
        for pair in chosen:
            row = [f"PF-dataset/{pair.source}.png", f"PF-dataset/{pair.target}.png"]
            for points in (pair.source_keypoints, pair.target_keypoints):
                row += [x + shift for x, _ in points] + [y for _, y in points]
            writer.writerow(row)
    return [(pair.source, pair.target) for pair in chosen]


def test_willow_by_the_list_of_pairs(willow_root, tmp_path):
    listed = _willow_list(willow_root, tmp_path / "list.csv", shift=0.5)
    benchmark = pfwillow.read(willow_root, tmp_path / "list.csv")
    assert [(pair.source, pair.target) for pair in benchmark.pairs] == listed
    whole = {pair.id: pair for pair in pfwillow.read(willow_root).pairs}
    assert all(whole[pair.id] == pair for pair in benchmark.pairs)


LIST_DAMAGE = {
    "shifted": (None, "keypoints of .* are 9.0 px from those of"),
    "columns": (lambda rows: rows[1].pop(), r"list\.csv:2: 41 columns, expected two images and 40"),
    "stranger": (lambda rows: rows[1].__setitem__(0, "car(T)/nobody.png"), r":2: image car\(T\)/nobody is not in"),
    "text": (lambda rows: rows[1].__setitem__(5, "x"), ":2: not a number"),
    "twice": (lambda rows: rows.append(rows[1]), "is also in line 2"),
    "empty": (lambda rows: rows.__delitem__(slice(1, None)), "the list of pairs is empty"),
}


@pytest.mark.parametrize("case", LIST_DAMAGE)
def test_damaged_willow_list(willow_root, tmp_path, case):
    damage, message = LIST_DAMAGE[case]
    path = tmp_path / "list.csv"
    _willow_list(willow_root, path, shift=0.0 if damage else 9.0)
    if damage:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        damage(rows)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    with pytest.raises(UserError, match=message):
        pfwillow.read(willow_root, path)


@pytest.fixture
def pascal_root(tmp_path):
    """A folder in PF-PASCAL's format: three images of two categories, all lists."""
    root = tmp_path / "PF-dataset-PASCAL"
    rng = np.random.default_rng(0)
    (root / "JPEGImages").mkdir(parents=True)
    points = {}
    for category in ("cat", "dog"):
        (root / "Annotations" / category).mkdir(parents=True)
        for number in range(3):
            name = f"2008_{category}{number}"
            Image.new("RGB", (60, 40)).save(root / "JPEGImages" / f"{name}.jpg")
            kps = rng.uniform(1, 39, (8, 2))
            kps[number] = np.nan
            points[name] = kps
            scipy.io.savemat(root / "Annotations" / category / f"{name}.mat", {"kps": kps, "bbox": [[1.0, 2, 50, 39]]})
    for split in ("train", "val", "test"):
        with (root / f"{split}_pairs_pf_pascal.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["source_image", "target_image", "class", *(["flip"] if split == "train" else ["XA", "YA", "XB", "YB"])]
            )
            for category, label in (("cat", 8), ("dog", 12)):
                for one, other in combinations([f"2008_{category}{number}" for number in range(3)], 2):
                    row = [f"PF-dataset-PASCAL/JPEGImages/{name}.jpg" for name in (one, other)] + [label]
                    if split == "train":
                        writer.writerows([[*row, 0], [*row, 1]])
                        continue
                    seen = np.isfinite(points[one]).all(1) & np.isfinite(points[other]).all(1)
                    for name in (one, other):
                        row += [";".join(map(str, points[name][seen, axis])) for axis in (0, 1)]
                    writer.writerow(row)
    return root


def test_pf_pascal(pascal_root):
    benchmark = pfpascal.read(pascal_root, "test")
    assert len(benchmark.pairs) == 6
    assert len(benchmark.images) == 6
    pair = benchmark.pairs[0]
    assert (pair.source, pair.target, pair.category) == ("2008_cat0", "2008_cat1", "cat")
    assert pair.keypoint_ids == ["2", "3", "4", "5", "6", "7"]
    truth = scipy.io.loadmat(pascal_root / "Annotations/cat/2008_cat1.mat")["kps"]
    np.testing.assert_array_equal(pair.target_keypoints, truth[2:])
    assert pair.target_bbox == [1, 2, 50, 39]
    training = pfpascal.read(pascal_root, "trn")
    assert len(training.pairs) == 6
    assert training.left_out == {"mirrored copies": 6}
    assert _check(pascal_root)[1] == "pairs listed: trn 12, val 6, test 6"
    with pytest.raises(UserError, match="PF-PASCAL has"):
        _check(pascal_root, "pfpascal")


def _pascal_rows(root: Path, change: Callable[[list], object]) -> None:
    path = root / "test_pairs_pf_pascal.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


PASCAL_DAMAGE = {
    "coordinates": (
        lambda root: _pascal_rows(root, lambda r: r[1].__setitem__(3, r[2][3])),
        ":2: source keypoints differ",
    ),
    "class": (
        lambda root: _pascal_rows(root, lambda r: r[1].__setitem__(2, "21")),
        ":2: not source image, target image",
    ),
    "twice": (
        lambda root: _pascal_rows(root, lambda r: r.append(r[1])),
        ":8: pair 2008_cat0, 2008_cat1 is listed twice",
    ),
    "no list": (
        lambda root: (root / "test_pairs_pf_pascal.csv").unlink(),
        "holds neither test_pairs_pf_pascal.csv nor",
    ),
    "no mat": (
        lambda root: (root / "Annotations/cat/2008_cat0.mat").unlink(),
        r"2008_cat0\.mat: the annotation is missing",
    ),
    "no kps": (
        lambda root: scipy.io.savemat(root / "Annotations/cat/2008_cat0.mat", {"bbox": [1, 2, 3, 4]}),
        r"2008_cat0\.mat: holds no kps",
    ),
    "no image": (lambda root: (root / "JPEGImages/2008_cat0.jpg").unlink(), r"2008_cat0\.jpg: the image is missing"),
}


@pytest.mark.parametrize("case", PASCAL_DAMAGE)
def test_damaged_pf_pascal(pascal_root, case):
    damage, message = PASCAL_DAMAGE[case]
    damage(pascal_root)
    with pytest.raises(UserError, match=message):
        pfpascal.read(pascal_root, "test")


@pytest.fixture
def ap10k_root(tmp_path):
    """A folder in AP-10K's correspondence format: two families, three species, two animals each."""
    root = tmp_path / "ap-10k"
    rng = np.random.default_rng(1)
    animals = {}
    for family, species in (("Felidae", "cat"), ("Felidae", "lion"), ("Canidae", "dog")):
        for folder in ("JPEGImages", "ImageAnnotation"):
            (root / folder / family / species).mkdir(parents=True)
        for _ in range(2):
            name = f"{len(animals):012d}"
            Image.new("RGB", (64, 48)).save(root / "JPEGImages" / family / species / f"{name}.jpg")
            points = np.column_stack([rng.integers(0, 48, (17, 2)), np.full(17, 2)])
            points[len(animals)] = 0
            values = {"width": 64, "height": 48, "bbox": [3, 4, 40, 30], "keypoints": points.ravel().tolist(), "id": 1}
            path = root / "ImageAnnotation" / family / species / f"{name}.json"
            path.write_text(json.dumps(values))
            animals[name] = f"data/ap-10k/ImageAnnotation/{family}/{species}/{name}.json"
    names = list(animals)
    for folder, pairs in {
        "test": [(0, 1, "cat"), (2, 3, "lion"), (4, 5, "dog")],
        "test_cross_species": [(0, 2, "Felidae"), (1, 3, "Felidae")],
        "test_cross_family": [(0, 4, "all")],
    }.items():
        (root / "PairAnnotation" / folder).mkdir(parents=True)
        for one, other, group in pairs:
            path = root / "PairAnnotation" / folder / f"{names[one]}-{names[other]}:{group}.json"
            path.write_text(json.dumps({"src_json_path": animals[names[one]], "trg_json_path": animals[names[other]]}))
    return root


def test_ap10k(ap10k_root):
    pairs = {subset: ap10k.read(ap10k_root, "test", subset).pairs for subset in ap10k.SUFFIXES}
    assert {subset: len(found) for subset, found in pairs.items()} == {
        "intra_species": 3,
        "cross_species": 2,
        "cross_family": 1,
    }
    first = pairs["intra_species"][0]
    assert (first.category, first.source) == ("cat", "Felidae/cat/000000000000")
    assert first.keypoint_ids == [str(number) for number in range(2, 17)]
    assert first.target_bbox == [3, 4, 43, 34]
    assert pairs["cross_family"][0].category == "all"
    assert _check(ap10k_root)[1] == "2 families, 3 species"
    assert len(_check(ap10k_root)) == 5


def _ap10k_animal(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "ImageAnnotation/Felidae/cat/000000000000.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def _ap10k_pair(root: Path, **values: str) -> None:
    next((root / "PairAnnotation/test").glob("*:cat.json")).write_text(json.dumps(values))


AP10K_DAMAGE = {
    "no pairs": (lambda root: shutil.rmtree(root / "PairAnnotation/test"), "test: holds no pairs"),
    "no image": (lambda root: (root / "JPEGImages/Felidae/cat/000000000000.jpg").unlink(), "the image is missing"),
    "size": (lambda root: _ap10k_animal(root, lambda v: v.update(width=9)), "has 9 x 48 pixels, but it has 64 x 48"),
    "16 points": (lambda root: _ap10k_animal(root, lambda v: v.update(keypoints=[1] * 48)), "48 numbers for 17"),
    "no box": (lambda root: _ap10k_animal(root, lambda v: v.pop("bbox")), "key 'bbox' is missing"),
    "empty box": (lambda root: _ap10k_animal(root, lambda v: v.update(bbox=[1, 1, 0, 5])), "has no area"),
    "no path": (lambda root: _ap10k_pair(root, src_json_path="x"), "not a pair of AP-10K"),
    "path out": (
        lambda root: _ap10k_pair(root, src_json_path="ImageAnnotation/../../x.json", trg_json_path="y"),
        "not a pair of AP-10K",
    ),
    "outside": (
        lambda root: _ap10k_animal(root, lambda v: v.update(keypoints=[99, 1, 2] * 17)),
        r"\[99.0, 1.0\] is outside",
    ),
}


@pytest.mark.parametrize("case", AP10K_DAMAGE)
def test_damaged_ap10k(ap10k_root, case):
    damage, message = AP10K_DAMAGE[case]
    damage(ap10k_root)
    with pytest.raises(UserError, match=message):
        ap10k.read(ap10k_root, "test", "intra_species")


@pytest.mark.parametrize("head", [True, False])
def test_lists_with_and_without_a_header(willow_root, pascal_root, tmp_path, head):
    """All pairs count, be there a header or none; as spreadsheets save lists, too."""

    def rewrite(path: Path) -> int:
        lines = path.read_text().splitlines()[0 if head else 1 :]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n")
        return len(lines) - head

    _willow_list(willow_root, tmp_path / "list.csv")
    assert len(pfwillow.read(willow_root, tmp_path / "list.csv").pairs) == rewrite(tmp_path / "list.csv")
    assert len(pfwillow.read(willow_root, tmp_path / "list.csv").pairs) == 5
    for split, name in (("test", "test_pairs_pf_pascal.csv"), ("trn", "train_pairs_pf_pascal.csv")):
        rewrite(pascal_root / name)
        assert len(pfpascal.read(pascal_root, split).pairs) == 6


def _said(capsys, *arguments: object, code: int = 0) -> str:
    if code:
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", *map(str, arguments)])
        assert ended.value.code == code
        return capsys.readouterr().err
    cli.main(["check", *map(str, arguments)])
    return capsys.readouterr().out


def test_check_says_what_was_absent(toy_root, spair_root, pascal_root, ap10k_root, capsys):
    """“All of it” is said where all of it is there; elsewhere, what is not there and so was not verified."""
    assert "All of it was verified." in _said(capsys, toy_root / "spair")
    assert "All of it was verified." in _said(capsys, pascal_root)
    for path in pascal_root.glob("*.csv"):
        path.unlink()
    said = _said(capsys, pascal_root)
    assert "All of it" not in said
    assert "not verified: train_pairs_pf_pascal.csv or trn_pairs.csv, val_pairs" in said
    assert "holds no train_pairs_pf_pascal.csv" in _said(capsys, pascal_root, "--expect", "pfpascal", code=2)
    (pascal_root / "JPEGImages/any.jpg").write_text("x\n")
    assert "any.jpg: not a readable image" in _said(capsys, pascal_root, code=2)

    shutil.rmtree(ap10k_root / "PairAnnotation/test")
    said = _said(capsys, ap10k_root)
    assert "All of it" not in said
    assert said.rstrip().endswith("PairAnnotation/test")
    (ap10k_root / "JPEGImages/Canidae/dog/000000000005.jpg").write_bytes(b"")
    assert "000000000005.jpg: not a readable image" in _said(capsys, ap10k_root, code=2)

    shutil.rmtree(spair_root / "Layout/large")
    said = _said(capsys, spair_root)
    counts = {split: len(spair.read_layout(spair_root, split, "small")) for split in spair.SPLITS}
    assert all(f"{split}: " in said and f", {count} pairs" in said for split, count in counts.items())
    assert "not verified: Layout/large/trn.txt, Layout/large/val.txt, Layout/large/test.txt" in said
    name = spair.read_layout(spair_root, "val", "small")[0]
    (spair_root / "PairAnnotation/val" / f"{name}.json").write_text("{")
    assert "not valid JSON" in _said(capsys, spair_root, code=2)


@pytest.mark.parametrize("instead", ["_", "\uf03a"])
def test_pairs_unpacked_on_windows(ap10k_root, spair_root, instead):
    """No colon may stand in a file's name there: the same pairs, ids and categories all the same."""
    before = {subset: ap10k.read(ap10k_root, "test", subset).pairs for subset in ap10k.SUFFIXES}
    splits = {split: spair.read(spair_root, split, "large").pairs for split in spair.SPLITS}
    for root in (ap10k_root, spair_root):
        for path in sorted(root.rglob("*:*.json")):
            path.rename(path.with_name(path.name.replace(":", instead)))
    for path in ap10k_root.rglob("PairAnnotation/test/*.json"):  # written there too
        values = json.loads(path.read_text())
        path.write_text(json.dumps({key: value.replace("/", "\\") for key, value in values.items()}))
    assert {subset: ap10k.read(ap10k_root, "test", subset).pairs for subset in ap10k.SUFFIXES} == before
    assert {pair.category for pair in before["intra_species"]} == {"cat", "lion", "dog"}
    assert {split: spair.read(spair_root, split, "large").pairs for split in spair.SPLITS} == splits


def test_a_pair_that_is_not_what_its_folder_says(ap10k_root):
    animals = [f"ImageAnnotation/Felidae/{name}.json" for name in ("cat/000000000000", "lion/000000000002")]
    _ap10k_pair(ap10k_root, src_json_path=animals[0], trg_json_path=animals[1])
    with pytest.raises(UserError, match="pairs Felidae/cat with Felidae/lion, which is not intra species"):
        ap10k.read(ap10k_root, "test", "intra_species")
