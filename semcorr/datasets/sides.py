"""Which keypoints are the same part of an object on another side or corner, so that only geometry tells them apart.

SPair-71k's and AP-10K's groups are those of GeoAware-SC (Zhang et al., Telling Left from Right, CVPR 2024,
utils_geoware.py); its list for bicycle carries placeholder ids. Numbers are the keypoint ids of annotations.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

SPAIR71K: dict[str, list[list[int]]] = {
    "aeroplane": [[4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15], [16, 17], [18, 19], [20, 21]],
    "bicycle": [[2, 3], [6, 7], [9, 10]],
    "bird": [[1, 2], [10, 11], [12, 13], [14, 15]],
    "boat": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]],
    "bottle": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]],
    "bus": [
        [0, 1],
        [2, 3, 5, 6],
        [4, 7],
        [10, 13, 20, 23],
        [11, 14, 21, 24],
        [12, 15, 22, 25],
        [16, 17, 26, 27],
        [18, 19, 28, 29],
    ],
    "car": [
        [0, 1],
        [2, 3, 6, 7],
        [4, 8],
        [5, 9],
        [10, 13, 20, 23],
        [11, 14, 21, 24],
        [12, 15, 22, 25],
        [16, 17, 26, 27],
        [18, 19, 28, 29],
    ],
    "cat": [[2, 3], [9, 10, 11, 12]],
    "chair": [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9], [10, 11], [12, 13]],
    "cow": [[2, 3], [9, 10, 11, 12], [15, 16, 17, 18], [19, 20]],
    "dog": [[2, 3], [9, 10, 11, 12]],
    "horse": [[2, 3], [10, 11, 12, 13], [16, 17, 18, 19]],
    "motorbike": [[0, 1], [2, 3]],
    "person": [[8, 9], [10, 11], [12, 13], [14, 15], [16, 17], [18, 19]],
    "pottedplant": [[0, 1, 2, 3], [4, 5], [6, 8]],
    "sheep": [[2, 3], [9, 10, 11, 12], [15, 16, 17, 18], [19, 20]],
    "train": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15], [16, 17]],
    "tvmonitor": [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]],
}
AP10K: list[list[int]] = [[5, 8], [6, 9, 12, 15], [7, 10, 13, 16], [11, 14]]
POSITION = re.compile(r"(?:^|[^a-z])(l|r|left|right|front|fore|back|rear|hind)(?=[^a-z]|$)")
# Of the drawn objects: names that differ in left, right, front, rear or hind alone.
TOY: dict[str, list[list[int]]] = {
    "bicycle": [[1, 6], [2, 7], [4, 8], [5, 9]],
    "bird": [[5, 10], [6, 11], [7, 12], [8, 13]],
    "car": [[0, 9], [1, 10], [2, 6, 11, 15], [3, 7, 12, 16], [4, 13], [5, 14], [8, 17], [18, 19]],
    "dog": [[3, 12], [4, 13], [5, 7, 14, 16], [6, 8, 15, 17]],
    "fish": [[3, 7], [4, 8], [5, 9]],
    "giraffe": [[3, 12], [4, 13], [5, 7, 14, 16], [6, 8, 15, 17]],
    "person": [[3, 12], [4, 13], [5, 14], [6, 15], [7, 16], [8, 17], [9, 18]],
    "plane": [[2, 7], [3, 8], [4, 9], [5, 10]],
}


def groups(table: str, category: str, names: Iterable[str] = ()) -> list[frozenset[str]]:
    """The groups of a category, as sets of keypoint names.

    Args:
        table: "spair71k", "ap10k" (the same for every category), "toy", or "names": those of `names` that differ in
            their position alone (left, right, front, back).
        category: one that the table lacks has no groups.
        names: of the category's keypoints.
    """
    if table == "names":
        return _by_names(names)
    match table:
        case "ap10k":
            found = AP10K
        case "toy":
            found = TOY.get(category, [])
        case _:
            found = SPAIR71K.get(category, [])
    return [frozenset(map(str, group)) for group in found]


def _by_names(names: Iterable[str]) -> list[frozenset[str]]:
    """Names that are the same without words such as left and back, however they are written."""
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()  # leftEye
        alike[re.sub(r"[^a-z0-9]", "", POSITION.sub("", words))].add(name)
    return [frozenset(group) for rest, group in alike.items() if rest and len(group) > 1]
