"""The drawn benchmarks on disk, in the formats of SPair-71k and of PF-WILLOW."""

from itertools import permutations
from pathlib import Path

import numpy as np
import scipy.io

from semcorr.artifacts.files import write_json, write_text
from semcorr.datasets.toy.objects import CATEGORIES
from semcorr.datasets.toy.scene import Scene, render, swap_sides

MIN_COMMON = 3  # keypoints that a pair must share, as in SPair-71k
POSES = {"person": ("Frontal", "Frontal"), "plane": ("Unspecified", "Unspecified")}

# PF-WILLOW annotates ten keypoints in every image, so these are ten that a clear side view shows.
WILLOW = {
    "bicycle": "front_hub rear_hub head_tube left_grip saddle_nose saddle_rear crank left_pedal "
    "front_tyre_bottom rear_tyre_bottom",
    "bird": "beak left_eye crown neck breast belly left_shoulder tail_tip left_wing_tip left_foot",
    "car": "left_front_wheel left_rear_wheel left_headlight left_tail_light roof_front roof_rear "
    "left_mirror left_door_handle front_bumper rear_bumper",
    "fish": "mouth left_eye left_gill dorsal_fin tail_top tail_bottom tail_base belly anal_fin left_pectoral_fin",
}


def write_spair(root: Path, seed: int, images: dict[str, int]) -> None:
    """Write a folder in SPair-71k's format.

    Args:
        root: an empty or missing folder.
        seed: decides every pixel.
        images: images per category in each of trn, val, test; the splits share none.
    """
    number = 0
    for split, count in images.items():
        names: dict[str, list[str]] = {"large": [], "small": []}
        for index, category in enumerate(CATEGORIES):
            scenes = {
                f"toy_{split}_{position:03d}": render(
                    category, np.random.default_rng([seed, list(("trn", "val", "test")).index(split), index, position])
                )
                for position in range(count)
            }
            for name, scene in scenes.items():
                _write_spair_image(root, category, name, scene)
            for source, target in permutations(scenes, 2):
                pair = _spair_pair(number, category, (source, scenes[source]), (target, scenes[target]))
                if len(pair["kps_ids"]) < MIN_COMMON:
                    continue
                write_json(root / "PairAnnotation" / split / f"{pair['filename']}.json", pair)
                names["large"].append(pair["filename"])
                if number % 5 == 0:
                    names["small"].append(pair["filename"])
                number += 1
        for layout in names:
            write_text(root / "Layout" / layout / f"{split}.txt", "\n".join(names[layout]) + "\n")


def keypoint_numbers(category: str) -> dict[str, str]:
    """SPair's number, as text, of each keypoint name of a category."""
    names = CATEGORIES[category](np.random.default_rng(0)).marks
    return {name: str(number) for number, name in enumerate(sorted({*names, *map(swap_sides, names)}))}


def _write_spair_image(root: Path, category: str, name: str, scene: Scene) -> None:
    for folder, image, suffix in (("JPEGImages", scene.image, "jpg"), ("Segmentation", scene.mask, "png")):
        path = root / folder / category / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
    width, height = scene.image.size
    numbers = keypoint_numbers(category)
    points = {number: scene.keypoints.get(key) for key, number in numbers.items()}
    annotation = {
        "filename": f"{name}.jpg",
        "src_database": "semcorr toy",
        "src_annotation": "semcorr toy",
        "src_image": "drawn",
        "image_width": width,
        "image_height": height,
        "image_depth": 3,
        "category": category,
        "pose": _pose(category, scene),
        "truncated": int(scene.truncated),
        "occluded": int(scene.occluded),
        "difficult": 0,
        "bndbox": list(scene.bbox),
        "kps": {number: point and [round(value) for value in point] for number, point in points.items()},
        "azimuth_id": round(np.degrees(scene.yaw) % 360 / 45) % 8,
    }
    write_json(root / "ImageAnnotation" / category / f"{name}.json", annotation)


def _pose(category: str, scene: Scene) -> str:
    return POSES.get(category, ("Left", "Right"))[scene.mirrored]


def _spair_pair(number: int, category: str, source: tuple[str, Scene], target: tuple[str, Scene]) -> dict:
    (source_name, first), (target_name, second) = source, target
    numbers = keypoint_numbers(category)
    common = sorted(first.keypoints.keys() & second.keypoints.keys(), key=lambda name: int(numbers[name]))
    sides = [max(box[2] - box[0], box[3] - box[1]) for box in (first.bbox, second.bbox)]
    angle = abs(first.yaw - second.yaw)
    flipped = first.mirrored != second.mirrored and category not in POSES
    return {
        "pair_id": number,
        "filename": f"{number:06d}-{source_name}-{target_name}:{category}",
        "src_imname": f"{source_name}.jpg",
        "trg_imname": f"{target_name}.jpg",
        "src_imsize": [*first.image.size, 3],
        "trg_imsize": [*second.image.size, 3],
        "src_bndbox": list(first.bbox),
        "trg_bndbox": list(second.bbox),
        "category": category,
        "src_pose": _pose(category, first),
        "trg_pose": _pose(category, second),
        "src_kps": [[round(value) for value in first.keypoints[name]] for name in common],
        "trg_kps": [[round(value) for value in second.keypoints[name]] for name in common],
        "kps_ids": [numbers[name] for name in common],
        "mirror": int(flipped),
        "viewpoint_variation": 2 if flipped else int(angle > 0.5),
        "scale_variation": int(np.digitize(max(sides) / min(sides), (1.3, 1.8))),
        "truncation": int(first.truncated) + 2 * int(second.truncated),
        "occlusion": int(first.occluded) + 2 * int(second.occluded),
    }


def write_pfwillow(root: Path, seed: int, images: dict[str, int]) -> None:
    """Write a folder in PF-WILLOW's format, drawn in pencil; `images` is {"all": images per sub-set}."""
    for index, (category, names) in enumerate(WILLOW.items()):
        for position in range(images["all"]):
            rng = np.random.default_rng([seed, index, position])
            wanted = names.split()
            scene = render(category, rng, sketch=True, clear=True)
            while not scene.keypoints.keys() >= set(wanted):
                scene = render(category, rng, sketch=True, clear=True)
            stem = root / f"{category}(T)" / f"{category.capitalize()}_{position:03d}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            scene.image.save(stem.with_suffix(".png"))
            points = np.array([scene.keypoints[name] for name in wanted]).T
            scipy.io.savemat(stem.with_suffix(".mat"), {"pts_coord": points})
