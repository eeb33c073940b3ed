"""PF-WILLOW, as its authors publish it (Ham et al., Proposal Flow, 2016): folders of PNG images with .mat files.

A folder, such as `car(S)`, is one sub-set of the category before the bracket. Each image has ten keypoints in a
.mat file of the same name (`pts_coord`, 2 x 10, x then y). The pairs are all ordered pairs within a folder.
"""

from itertools import permutations
from pathlib import Path

import numpy as np
import scipy.io

from semcorr.datasets.base import Benchmark, Image, Pair, check_pair, image_size
from semcorr.errors import UserError

KEYPOINTS = 10


def read(root: Path) -> Benchmark:
    """Read all pairs.

    Args:
        root: the folder that holds the sub-sets' folders (PF-dataset).

    Raises:
        UserError: an image has no .mat file or the reverse, or a file is damaged; the message names it.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not any(next(folder.glob("*.mat"), None) for folder in folders):
        raise UserError(f"{root}: no folder in PF-WILLOW's format (sub-set folders of .png and .mat files)")
    images, pairs = [], []
    sizes, keypoints = {}, {}
    for folder in folders:
        category = folder.name.split("(")[0]
        ids = [f"{folder.name}/{name}" for name in _names(folder)]
        for id_ in ids:
            sizes[id_] = image_size(root / f"{id_}.png")
            keypoints[id_] = read_keypoints(root / f"{id_}.mat")
            height, width = sizes[id_]
            images.append(Image(id=id_, file=f"{id_}.png", category=category, height=height, width=width))
        for source, target in permutations(ids, 2):
            pair = Pair(
                id=f"{source}-{target.split('/')[1]}",
                category=category,
                source=source,
                target=target,
                keypoint_ids=[str(number) for number in range(KEYPOINTS)],
                source_keypoints=keypoints[source],
                target_keypoints=keypoints[target],
                subset=folder.name,
            )
            pairs.append(check_pair(pair, sizes, folder / f"{source.split('/')[1]}.mat"))
    return Benchmark(root=root, images=images, pairs=pairs)


def read_keypoints(path: Path) -> list[list[float]]:
    """The (10, 2) keypoints, x y, of one .mat file."""
    try:
        points = np.asarray(scipy.io.loadmat(path, variable_names=["pts_coord"])["pts_coord"], float)
    except KeyError:
        raise UserError(f"{path}: holds no pts_coord") from None
    except (OSError, ValueError, NotImplementedError, TypeError) as error:
        raise UserError(f"{path}: not a readable .mat file ({error})") from None
    if points.shape != (2, KEYPOINTS) or not np.isfinite(points).all():
        raise UserError(f"{path}: pts_coord has shape {points.shape}, expected (2, {KEYPOINTS}) finite numbers")
    return points.T.tolist()


def _names(folder: Path) -> list[str]:
    """Images of a sub-set, without suffix; each must have its .mat file, and each .mat file its image."""
    images = {path.stem for path in folder.glob("*.png")}
    annotations = {path.stem for path in folder.glob("*.mat")}
    for name in sorted(images ^ annotations):
        missing = ".mat" if name in images else ".png"
        raise UserError(f"{folder / name}{missing}: is missing, its counterpart is there")
    return sorted(images)
