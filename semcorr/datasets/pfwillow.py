"""PF-WILLOW as published by its authors (Ham et al., Proposal Flow, 2016): folders of PNG images with .mat files.

A folder, such as `car(S)`, is one subset of the category before the bracket. Each image has ten keypoints in a .mat
file of the same name (`pts_coord`, 2 x 10, x then y). The pairs are all ordered pairs within a folder.
"""

import re
from itertools import groupby, permutations
from pathlib import Path

import numpy as np

from semcorr.artifacts.files import project_path
from semcorr.datasets.annotations import read_list, read_mat
from semcorr.datasets.base import Benchmark, Image, Pair, check_image, check_pair, image_files, in_any_case, named
from semcorr.datasets.decode import image_size
from semcorr.datasets.formats import Files
from semcorr.errors import UserError
from semcorr.params import PFWillowSpec

WHOLE = {"pairs": None, "subsets": None, "categories": None, "limit": None}
KEYPOINTS = 10
NUMBERS = [str(number) for number in range(KEYPOINTS)]
SUBSETS, IMAGES_PER_SUBSET = 10, 10
LIST_TOLERANCE = 1.0  # pixels: lists count from 0 or from 1, and round


def find(folder: Path) -> Path | None:
    """Find the root of the format: `folder` itself or a folder in it."""
    for path in (folder, *sorted(folder.iterdir())):
        if any(in_any_case(mat.with_suffix(".png")).exists() for mat in path.glob("*/*.mat")):
            return path
    return None


def load(root: Path, spec: PFWillowSpec) -> Benchmark:
    """Read all pairs, or those of the list and the subsets that params.yaml names."""
    whole = read(root, project_path(spec.pairs) if spec.pairs else None)
    if spec.subsets is None:
        return whole.only(spec.categories).within(spec.part)
    known = {image.id.split("/")[0] for image in whole.images}
    if strangers := set(spec.subsets) - known:
        raise UserError(f"{root}: holds no subset {min(strangers)}; it has {', '.join(sorted(known))}")
    return (
        Benchmark(
            root=whole.root,
            images=[image for image in whole.images if image.id.split("/")[0] in spec.subsets],
            pairs=[pair for pair in whole.pairs if pair.subset in spec.subsets],
            left_out=whole.left_out,
        )
        .only(spec.categories)
        .within(spec.part)
    )


def listed(files: Files, spec: PFWillowSpec) -> list[tuple[str, str]]:
    """The images of each pair: of the list, or all in a sub-set, by the names of .mat files."""
    names = [f"{name.removesuffix('.mat')}.png" for name in files.names("*/*.mat")]
    pairs = [both for _, subset in groupby(names, _subset) for both in permutations(subset, 2)]
    if spec.pairs:
        known, rows = set(pairs), read_list(project_path(spec.pairs))
        pairs = [("/".join(row[0].split("/")[-2:]), "/".join(row[1].split("/")[-2:])) for _, row in rows]
        pairs = [both for both in pairs if both in known]
    if spec.subsets is not None:
        pairs = [both for both in pairs if _subset(both[0]) in spec.subsets]
    if spec.categories is not None:
        pairs = [both for both in pairs if _subset(both[0]).split("(")[0] in spec.categories]
    return pairs


def _subset(name: str) -> str:
    return name.partition("/")[0]


def parts(root: Path, spec: PFWillowSpec) -> list[PFWillowSpec]:
    """The whole dataset."""
    return [spec.model_copy(update={"limit": None, "subsets": None})]


def rest(root: Path) -> list[Path]:
    """Every image file; each one's .mat file is read.

    Raises:
        UserError: a .mat file is missing or damaged.
    """
    files = [in_any_case(folder / f"{name}.png") for folder in _folders(root) for name in _names(folder)]
    for path in files:
        read_keypoints(path.with_suffix(".mat"))
    return files


def absent(root: Path) -> list[str]:
    """Nothing: each image must have its .mat file, and the pairs follow from the folders."""
    return []


def verify(root: Path, spec: PFWillowSpec) -> list[str]:
    """Count subsets and images; PF-WILLOW itself (`expect: pfwillow`) has 10 subsets of 10 images.

    Raises:
        UserError: the folder is expected to be PF-WILLOW, but is not.
    """
    counts = {folder.name: len(_names(folder)) for folder in _folders(root)}
    if spec.expect == "pfwillow" and sorted(counts.values()) != [IMAGES_PER_SUBSET] * SUBSETS:
        raise UserError(
            f"{root}: PF-WILLOW has {SUBSETS} folders of {IMAGES_PER_SUBSET} images, this has {counts}. Get it again, "
            f"or set `expect: any` if the data are your own"
        )
    return [f"{len(counts)} sub-sets, {sum(counts.values())} images, as many .mat files"]


def read(root: Path, pairs: Path | None = None) -> Benchmark:
    """Read the benchmark.

    Args:
        root: the folder that holds the subsets' folders (PF-dataset).
        pairs: the usual list of pairs (test_pairs_pf.csv), for its pairs in its order; None takes all ordered pairs
            within a folder. Keypoints are those of the .mat files; the list's must agree with them.

    Raises:
        UserError: an image has no .mat file or vice versa, a file is damaged, or the list contradicts the .mat files.
    """
    images, sizes, keypoints = [], {}, {}
    for folder in _folders(root):
        for name in _names(folder):
            id_ = f"{folder.name}/{name}"
            file = in_any_case(root / f"{id_}.png")
            sizes[id_] = image_size(file)
            keypoints[id_] = read_keypoints(root / f"{id_}.mat")
            height, width = sizes[id_]
            category = folder.name.split("(")[0]
            image = Image(
                id=id_,
                file=f"{id_}{file.suffix}",
                category=category,
                height=height,
                width=width,
                keypoint_ids=NUMBERS,
                keypoints=keypoints[id_],
            )
            images.append(check_image(image, root / f"{id_}.mat"))
    if pairs is None:
        ids = [image.id for image in images]
        listed = [both for both in permutations(ids, 2) if both[0].split("/")[0] == both[1].split("/")[0]]
    else:
        listed = _read_list(pairs, keypoints)

    def pair(source: str, target: str) -> Pair:
        subset, name = source.split("/")
        made = Pair(
            id=f"{source}-{target.split('/')[1]}",
            category=subset.split("(")[0],
            source=source,
            target=target,
            keypoint_ids=NUMBERS,
            source_keypoints=keypoints[source],
            target_keypoints=keypoints[target],
            subset=subset,
        )
        return check_pair(made, sizes, root / subset / f"{name}.mat")

    made = [pair(*both) for both in listed]
    used = {id_ for both in listed for id_ in both}
    kept = [image for image in images if image.id in used]
    left_out = {"images in no pair": len(images) - len(kept)} if len(kept) < len(images) else {}
    return Benchmark(root=root, images=kept, pairs=made, left_out=left_out)


def _read_list(path: Path, keypoints: dict[str, list[list[float]]]) -> list[tuple[str, str]]:
    """Source and target of each pair of the usual CSV: two image names, then x and y of each image's points."""
    listed: dict[tuple[str, str], int] = {}
    for number, row in read_list(path):
        where = f"{path}:{number}"
        if len(row) != 2 + 4 * KEYPOINTS:
            raise UserError(f"{where}: {len(row)} columns, expected two images and {4 * KEYPOINTS} coordinates")
        source, target = (
            re.sub(r"\.png$", "", "/".join(name.split("/")[-2:]), flags=re.IGNORECASE) for name in row[:2]
        )
        for id_, columns in zip((source, target), (row[2 : 2 + 2 * KEYPOINTS], row[2 + 2 * KEYPOINTS :]), strict=True):
            if id_ not in keypoints:
                raise UserError(f"{where}: image {id_} is not in the dataset")
            try:
                points = np.array(columns, float).reshape(2, KEYPOINTS).T
            except ValueError as error:
                raise UserError(f"{where}: not a number ({error})") from None
            distance = np.abs(points - keypoints[id_]).max()
            if not distance <= LIST_TOLERANCE:
                raise UserError(f"{where}: keypoints of {id_} are {distance:.1f} px from those of {id_}.mat")
        if (source, target) in listed:
            raise UserError(f"{where}: pair {source}, {target} is also in line {listed[source, target]}")
        listed[source, target] = number
    return list(listed)


def _folders(root: Path) -> list[Path]:
    """The subsets' folders."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    folders = [folder for folder in folders if not folder.name.startswith((".", "__MACOSX"))]
    if not any(next(folder.glob("*.mat"), None) for folder in folders):
        raise UserError(f"{root}: not in PF-WILLOW's format (subset folders of .png and .mat files)")
    return folders


def read_keypoints(path: Path) -> list[list[float]]:
    """The (10, 2) keypoints, x y, of a .mat file."""
    [points] = read_mat(path, "pts_coord")
    if points.shape != (2, KEYPOINTS) or not np.isfinite(points).all():
        raise UserError(f"{path}: pts_coord has shape {points.shape}, expected (2, {KEYPOINTS}) finite numbers")
    return points.T.tolist()


def _names(folder: Path) -> list[str]:
    """Names of a subset's images, without suffix; each must have a .mat file, and each .mat file an image."""
    files = image_files(folder, ".png")
    images = {path.stem for path in files}
    if len(images) < len(files):
        double = next(path for path in files if sum(path.stem == file.stem for file in files) > 1)
        raise UserError(f"{double.with_suffix('')}: exists with its suffix in upper and in lower case. Keep one")
    annotations = {named(path).stem for path in folder.glob("*.mat") if not path.name.startswith(".")}
    for name in sorted(images ^ annotations):
        missing = ".mat" if name in images else ".png"
        raise UserError(f"{folder / name}{missing}: is missing, its counterpart exists")
    return sorted(images)
