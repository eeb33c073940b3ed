"""COCO keypoints files: pairs counted by hand, damage refused by name, the real sample, AP-10K's own layout."""

import json
import os
import subprocess
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semcorr import COCODataset
from semcorr.datasets import coco, verify
from semcorr.datasets.listing import count
from semcorr.errors import UserError
from semcorr.params import COCOSpec

SAMPLE = Path(os.environ.get("SEMCORR_DATA", Path(__file__).parents[3] / "shared/datasets")) / "animal-pose-sample"
SIZE = (60, 40)  # width, height
NAMES = {"cat": ["left_eye", "right_eye", "nose", "tail"], "cow": ["nose", "tail", "horn"], "stone": []}
# image -> (category, visibility of each keypoint) of its objects
OBJECTS: dict[str, list[tuple[str, list[int]]]] = {
    "a.jpg": [("cat", [2, 2, 2, 0])],
    "b.jpg": [("cat", [1, 0, 2, 2]), ("cat", [0, 2, 0, 0])],
    "c.jpg": [("cow", [2, 2, 2]), ("cat", [0, 0, 0, 1])],
    "d.jpg": [("cow", [0, 0, 1])],
    "e.jpg": [("stone", []), ("cat", [0, 0, 0, 0])],
}


def values_of(objects: dict[str, list[tuple[str, list[int]]]]) -> dict[str, Any]:
    """A COCO file; keypoint k of annotation n, below 50, lies at (n, k)."""
    width, height = SIZE
    numbers = {name: number for number, name in enumerate(NAMES, start=7)}
    annotations: list[dict[str, Any]] = []
    for image, (_, members) in enumerate(objects.items(), start=1):
        for category, visible in members:
            number = len(annotations) + 10
            keypoints = [value for k, v in enumerate(visible) for value in ((number % 50, k, v) if v else (0, 0, 0))]
            annotation = {"id": number, "image_id": image, "category_id": numbers[category], "iscrowd": 0}
            annotations.append(annotation | {"keypoints": keypoints, "bbox": [1.5, 2, number, 20], "area": 1})
    return {
        "info": {"description": "drawn"},
        "images": [
            {"id": number, "file_name": file, "width": width, "height": height}
            for number, file in enumerate(objects, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name, "keypoints": NAMES[name]} for name, id_ in numbers.items()],
    }


def write(root: Path, values: dict[str, Any], images: str = "images", annotations: str = "keypoints.json") -> Path:
    for image in values["images"]:
        path = root / images / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(path)
    path = root / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "coco", values_of(OBJECTS))


def spec_of(root: Path, **changes: Any) -> COCOSpec:
    plain = {"annotations": "keypoints.json", "images": "images", "pairs": "within", "sample": None, "limit": None}
    source = {"kind": "path", "path": str(root)}
    return COCOSpec.model_validate({"format": "coco", "sources": [source], "expect": "any", **plain, **changes})


def by_hand(pairs: str) -> dict[tuple[str, str], tuple[str, set[str]]]:
    """What `OBJECTS` should give: source and target -> category and common keypoints."""
    items = []
    number = 10
    for file, members in OBJECTS.items():
        for category, visible in members:
            seen = {name for name, v in zip(NAMES[category], visible, strict=True) if v}
            items.append((f"{Path(file).stem}-{number}", file, category, seen))
            number += 1
    found = {}
    for (one, file, category, seen), (other, second, kind, shown) in permutations(items, 2):
        if (category == kind) == (pairs == "within") and file != second and seen & shown:
            found[one, other] = (category if category == kind else f"{category} to {kind}", seen & shown)
    return found


@pytest.mark.parametrize("pairs", ["within", "across"])
def test_pairs_are_those_counted_by_hand(root, pairs):
    """Each object is an item, two of one image are no pair, and visibility 1 counts."""
    benchmark = coco.load(root, spec_of(root, pairs=pairs))
    truth = by_hand(pairs)
    found = {(pair.source, pair.target): (pair.category, set(pair.keypoint_ids)) for pair in benchmark.pairs}
    assert found == truth
    assert len(benchmark.pairs) == len(truth) == {"within": 8, "across": 4}[pairs]
    for pair in benchmark.pairs:
        for side, id_ in (("source", pair.source), ("target", pair.target)):
            number = int(id_.rpartition("-")[2])
            category = next(image.category for image in benchmark.images if image.id == id_)
            rows = [[number, NAMES[category].index(name)] for name in pair.keypoint_ids]
            np.testing.assert_array_equal(pair.points(side), rows)
            assert getattr(pair, f"{side}_bbox") == [1.5, 2, 1.5 + number, 22]
    assert benchmark.left_out["objects of categories without keypoints"] == 1
    assert benchmark.left_out["objects without a keypoint"] == 1
    files = {image.id: image.file for image in benchmark.images}
    assert files.keys() == {id_ for both in truth for id_ in both}
    assert all(files[id_] == f"{id_[0]}.jpg" for id_ in files)


def test_a_sample_is_part_of_all_and_has_its_number(root):
    every = [pair.id for pair in coco.load(root, spec_of(root)).pairs]
    drawn = {seed: coco.load(root, spec_of(root, sample={"seed": seed, "pairs": 3})) for seed in range(20)}
    ids = {seed: [pair.id for pair in benchmark.pairs] for seed, benchmark in drawn.items()}
    assert all(len(set(some)) == 3 and set(some) < set(every) for some in ids.values())
    assert {id_ for some in ids.values() for id_ in some} == set(every)
    assert len({tuple(some) for some in ids.values()}) > 5
    assert ids[0] == [pair.id for pair in coco.load(root, spec_of(root, sample={"seed": 0, "pairs": 3})).pairs]
    assert drawn[0].left_out["pairs that were not drawn"] == 14 - 3  # of the 14 ordered pairs of cats and of cows
    with pytest.raises(UserError, match=r"has 8 usable pairs, params\.yaml asks for a sample of 9"):
        coco.load(root, spec_of(root, sample={"seed": 0, "pairs": 9}))


def test_a_sample_of_very_many_pairs_is_drawn_without_listing_them(tmp_path):
    """4,000 objects have 16 million pairs: a hundred are drawn, all are refused."""
    objects = {"a.jpg": [("cat", [2, 2, 2, 2])] * 2000, "b.jpg": [("cat", [2, 2, 2, 2])] * 2000}
    values = values_of(objects)
    for annotation in values["annotations"]:
        annotation["keypoints"] = [5, 5, 2] * 4
    write(tmp_path, values)
    ids = [pair.id for pair in coco.load(tmp_path, spec_of(tmp_path, sample={"seed": 3, "pairs": 100})).pairs]
    assert len(set(ids)) == 100
    with pytest.raises(UserError, match=r"has 15,996,000 pairs, .* set sample"):
        coco.load(tmp_path, spec_of(tmp_path))


def test_a_sample_that_cannot_be_had_of_many_pairs_is_refused_soon(tmp_path, monkeypatch):
    """All objects are in one image, so that no pair is usable."""
    monkeypatch.setattr(coco, "MOST", 1000)
    write(tmp_path, values_of({"a.jpg": [("cat", [2, 2, 2, 2])] * 60}))
    with pytest.raises(UserError, match="has 0 usable pairs among 2,000 that were drawn, params"):
        coco.load(tmp_path, spec_of(tmp_path, sample={"seed": 3, "pairs": 1}))
    monkeypatch.setattr(coco, "MOST", 3000)
    with pytest.raises(UserError, match="has 0 usable pairs, params"):
        coco.load(tmp_path, spec_of(tmp_path, sample={"seed": 3, "pairs": 1}))


def test_objects_of_one_image_are_in_the_same_part(tmp_path):
    objects = {f"{number}.jpg": [("cat", [2, 2, 2, 2]), ("cat", [2, 2, 2, 2])] for number in range(30)}
    write(tmp_path, values_of(objects))
    part = {"seed": 1, "fraction": 0.4}
    files = {}
    for keep in ("part", "rest"):
        benchmark = coco.load(tmp_path, spec_of(tmp_path, part=part | {"keep": keep}))
        files[keep] = {image.file for image in benchmark.images}
        assert len(benchmark.images) == 2 * len(files[keep])
        assert len(benchmark.pairs) == 4 * len(files[keep]) * (len(files[keep]) - 1)
    assert not files["part"] & files["rest"]
    assert len(files["part"] | files["rest"]) == 30


def _annotation(number: int, **changes: object) -> Callable[[Path], None]:
    """Damage that changes values of an annotation."""
    return _changed(lambda values: values["annotations"][number].update(changes))


def _changed(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "keypoints.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return damage


def _text(root: Path, change: Callable[[str], str]) -> None:
    path = root / "keypoints.json"
    path.write_text(change(path.read_text()))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (lambda root: (root / "images/a.jpg").unlink(), r"images/a\.jpg: the image is missing"),
    "no file": (lambda root: (root / "keypoints.json").rename(root / "other.json"), r"there is other\.json"),
    "16 points": (
        _annotation(0, keypoints=[1, 1, 2] * 3),
        r"annotation 10: has 3 keypoints .*, its category cat has 4 names",
    ),
    "17 numbers": (_annotation(0, keypoints=[1] * 13), r"annotation 10: has 4\.33333 keypoints"),
    "zero-area box": (_annotation(1, bbox=[3, 4, 0, 5]), r"annotation 11: bbox \[3\.0, 4\.0, 0\.0, 5\.0\] has no area"),
    "no box": (_changed(lambda values: values["annotations"][1].pop("bbox")), "annotation 11: bbox None is not x, y"),
    "same annotation id": (_annotation(1, id=10), "annotation id 10 occurs twice"),
    "same image id": (_changed(lambda values: values["images"][1].update(id=1)), "image id 1 occurs twice"),
    "same category id": (_changed(lambda values: values["categories"][1].update(id=7)), "category id 7 occurs twice"),
    "same file": (
        _changed(lambda values: values["images"][1].update(file_name="a.jpg")),
        r"file_name a\.jpg occurs twice",
    ),
    "same category name": (
        _changed(lambda values: values["categories"][1].update(name="cat")),
        "category name cat occurs twice",
    ),
    "same keypoint name": (
        _changed(lambda values: values["categories"][0].update(keypoints=["nose", "nose", "b", "c"])),
        "keypoint of category cat nose occurs twice",
    ),
    "unknown image": (_annotation(0, image_id=99), "annotation 10: its image_id 99 is not among the images"),
    "unknown category": (_annotation(0, category_id=99), "annotation 10: its category_id 99 is not among the cat"),
    "visibility": (_annotation(0, keypoints=[1, 1, 3] * 4), "annotation 10: visibility 3 of left_eye; allowed: 0, 1"),
    "a text for a number": (_annotation(0, keypoints=["1"] * 12), r"not a COCO keypoints file \(Expected `float`"),
    "truncated": (
        lambda root: _text(root, lambda text: text[:500]),
        r"not a COCO keypoints file \(Input data was trunc",
    ),
    "not a number": (lambda root: _text(root, lambda text: text.replace("1.5", "NaN")), "not a COCO keypoints file"),
    "no annotations": (_changed(lambda values: values.pop("annotations")), "missing required field `annotations`"),
    "other size": (
        _changed(lambda values: values["images"][0].update(width=61)),
        r"says that a\.jpg has 61 x 40 pixels, but it has 60 x 40",
    ),
    "path out": (
        _changed(lambda values: values["images"][0].update(file_name="../a.jpg")),
        r"file_name '\.\./a\.jpg' is not a path below",
    ),
    "absolute path": (
        _changed(lambda values: values["images"][0].update(file_name="/etc/a.jpg")),
        "file_name '/etc/a.jpg' is not a path below",
    ),
    "not an image": (lambda root: (root / "images/a.jpg").write_text("x"), r"a\.jpg: not a readable image"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(root, case):
    damage, message = DAMAGE[case]
    damage(root)
    with pytest.raises(UserError, match=message):
        coco.load(root, spec_of(root))


def test_a_turned_photograph_is_refused(root):
    """Upside down, its size is the same: whether points mean the stored or the shown pixels cannot be known."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", SIZE).save(root / "images/a.jpg", exif=exif)
    with pytest.raises(UserError, match=r"a\.jpg: has EXIF orientation 3"):
        coco.load(root, spec_of(root))


LEFT_OUT: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "crowd": (_annotation(3, iscrowd=1, keypoints=[]), "crowds", 1),
    "outside": (_annotation(3, keypoints=[1, 1, 2, 61, 1, 2, 1, -1, 2]), "keypoints outside their image", 2),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_left_out_is_counted(root, case):
    """A crowd, and points beside the image."""
    damage, what, count = LEFT_OUT[case]
    damage(root)
    benchmark = coco.load(root, spec_of(root, pairs="across"))
    assert benchmark.left_out[what] == count
    assert f"{count} {what} left out" in verify.summary(benchmark)
    shown = {name for image in benchmark.images if image.category == "cow" for name in image.keypoint_ids}
    assert shown == (set() if case == "crowd" else {"nose"})


def test_only_some_categories(root):
    within = coco.load(root, spec_of(root, categories=["cow"]))
    assert {pair.category for pair in within.pairs} == {"cow"}
    assert within.left_out["objects of other categories or parts"] == 4
    with pytest.raises(UserError, match="holds no keypoints of category dog; it has cat, cow"):
        coco.load(root, spec_of(root, categories=["dog"]))


@pytest.mark.parametrize("packed", [False, True])
def test_it_is_counted_where_it_lies(root, packed):
    """By `semcorr plan`, before it is fetched, in a folder and in an archive."""
    path = root
    if packed:
        path = root.parent / "coco.tar.gz"
        subprocess.run(["tar", "-czf", path, "-C", root.parent, "coco"], check=True)
    assert count(path, spec_of(path)) == (4, 8, (SIZE[1], SIZE[0]))
    assert count(path, spec_of(path, pairs="across", sample={"seed": 0, "pairs": 2}))[1] == 2


def test_a_folder_is_recognised_and_checked(root, capsys):
    """Its files of annotations, their images wherever they are, and the archive around it."""
    from semcorr import cli

    write(
        root, values_of({"x.jpg": [("cat", [2] * 4)], "y.jpg": [("cat", [2] * 4)]}), "other/deep", "annotations/b.json"
    )
    cli.main(["check", str(root.parent)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{root}: format coco, 6 image files, each decoded"
    assert said[2].startswith("annotations/b.json: 2 images, 2 pairs, 8 keypoints")
    assert said[1].startswith("keypoints.json: 6 images, 8 pairs")


def test_ap10k_as_its_authors_publish_it(tmp_path):
    """data/*.jpg, annotations/ap10k-<split>-split1.json, 17 keypoints, categories with a supercategory, backgrounds."""
    names = ["left_eye", "right_eye", "nose", "neck", "root_of_tail"]
    names += [f"left_{part}" for part in ("shoulder", "elbow", "front_paw", "hip", "knee", "back_paw")]
    names += [f"right_{part}" for part in ("shoulder", "elbow", "front_paw", "hip", "knee", "back_paw")]
    species = [("Bovidae", "antelope"), ("Felidae", "lion"), ("Felidae", "cat")]
    images, annotations = [], []
    for number in range(6):
        file = {"license": 1, "id": number, "file_name": f"{number:012d}.jpg", "background": 1 + number % 8}
        images.append(file | {"width": SIZE[0], "height": SIZE[1]})
        keypoints = [value for k in range(17) for value in ((k, 2 * k, 2) if k != number else (0, 0, 0))]
        annotations.append(
            {"id": number + 1, "image_id": number, "category_id": 1 + number // 2, "bbox": [1, 2, 30, 35], "area": 1050}
            | {"iscrowd": 0, "num_keypoints": 16, "keypoints": keypoints}
        )
    categories = [
        {"id": number, "name": name, "supercategory": family, "keypoints": names, "skeleton": [[1, 2], [2, 3]]}
        for number, (family, name) in enumerate(species, start=1)
    ]
    values = {"info": {"year": 2021}, "licenses": [{"id": 1, "name": "x"}], "images": images}
    write(tmp_path, values | {"annotations": annotations, "categories": categories}, "data", "annotations/ap10k.json")
    own = {"annotations": "annotations/ap10k.json", "images": "data"}
    within = coco.load(tmp_path, spec_of(tmp_path, **own)).pairs
    assert [pair.category for pair in within] == ["antelope"] * 2 + ["cat"] * 2 + ["lion"] * 2
    assert all(len(pair.keypoint_ids) == 15 for pair in within)
    assert len(coco.load(tmp_path, spec_of(tmp_path, **own, pairs="across")).pairs) == 6 * 4


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs animal-pose-sample in a folder that SEMCORR_DATA names")
def test_the_real_sample():
    """150 photographs: 30 of each of five species, each with every other one."""
    root = SAMPLE
    within = coco.load(root, spec_of(root))
    assert (len(within.images), len(within.pairs)) == (150, 5 * 30 * 29)
    across = coco.load(root, spec_of(root, pairs="across", sample={"seed": 0, "pairs": 200}))
    assert len(across.pairs) == 200
    values = json.loads((root / "keypoints.json").read_text())
    sizes = {row["id"]: (row["width"], row["height"]) for row in values["images"]}
    names = values["categories"][0]["keypoints"]
    points = {}
    for row in values["annotations"]:
        width, height = sizes[row["image_id"]]
        triples = zip(names, row["keypoints"][::3], row["keypoints"][1::3], row["keypoints"][2::3], strict=True)
        points[row["id"]] = {name: [x, y] for name, x, y, seen in triples if seen and x <= width and y <= height}
    for pair in [*within.pairs[::97], *across.pairs]:
        one, other = (points[int(id_.rpartition("-")[2])] for id_ in (pair.source, pair.target))
        common = [name for name in names if name in one and name in other]
        assert pair.keypoint_ids == common
        np.testing.assert_array_equal(pair.points("source"), [one[name] for name in common])
        np.testing.assert_array_equal(pair.points("target"), [other[name] for name in common])


def test_as_a_pytorch_dataset(root):
    """The same pairs, and the error of a wrong argument."""
    dataset = COCODataset(root, images="images", pairs="across", sample=3, seed=1, long_side=30)
    benchmark = coco.load(root, spec_of(root, pairs="across", sample={"seed": 1, "pairs": 3}))
    assert [item["pair_id"] for item in dataset] == [pair.id for pair in benchmark.pairs]
    item, pair = dataset[0], benchmark.pairs[0]
    assert item["src_img"].shape == (3, 20, 30)
    np.testing.assert_allclose(item["src_kps"], (pair.points("source") + 0.5) / 2 - 0.5)
    assert item["tgt_bbox"].tolist() == pair.target_bbox
    with pytest.raises(UserError, match="pairs: Input should be 'within' or 'across', got 'inside'"):
        COCODataset(root, pairs="inside")
    with pytest.raises(UserError, match="no such folder"):
        COCODataset(root / "nowhere")
