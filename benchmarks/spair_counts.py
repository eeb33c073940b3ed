"""A true SPair-71k folder with full counts: how long it takes to check and to index, in how much memory.

Makes 1,800 small images and 70,958 pair files in a temporary folder, then runs, each in a process of its own,
`semcorr check`, `semcorr fetch` of the three splits, and `semcorr match` on the 12,234 test pairs, and shows how many
JSON files each opened. Named alternative: the bare loop that reads every pair's JSON, which a loader without an index
does each time it starts.

    python benchmarks/spair_counts.py
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, permutations
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from semcorr.datasets.spair import CATEGORIES, IMAGES_PER_CATEGORY, PAIRS, SPLITS

ROOT = Path(__file__).parents[1]
IMAGES = {"trn": 55, "val": 18, "test": 27}  # of each category's 100
KEYPOINTS = 7  # a pair, about the mean of SPair-71k
SIZE = (96, 128)  # height, width


def write(root: Path) -> None:
    """Write the folder."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    categories = [f"category{number:02d}" for number in range(CATEGORIES)]
    points = {}
    for category in categories:
        for folder in ("JPEGImages", "ImageAnnotation", "Segmentation"):
            (root / folder / category).mkdir(parents=True)
        for number in range(IMAGES_PER_CATEGORY):
            name = f"2008_{number:06d}"
            picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height))
            picture.save(root / "JPEGImages" / category / f"{name}.jpg")
            Image.new("L", (width, height), 255).save(root / "Segmentation" / category / f"{name}.png")
            points[category, name] = rng.integers(0, [width, height], (30, 2)).tolist()
            annotation = {
                "filename": f"{name}.jpg",
                "image_width": width,
                "image_height": height,
                "image_depth": 3,
                "category": category,
                "pose": "Left",
                "truncated": 0,
                "occluded": 0,
                "difficult": 0,
                "bndbox": [1, 1, width, height],
                "kps": dict(enumerate(points[category, name])),
                "azimuth_id": 2,
            }
            (root / "ImageAnnotation" / category / f"{name}.json").write_text(json.dumps(annotation))
    first, number = 0, 0
    for split in SPLITS:
        names = [f"2008_{index:06d}" for index in range(first, first + IMAGES[split])]
        first += IMAGES[split]
        (root / "PairAnnotation" / split).mkdir(parents=True)
        pairs = ((category, pair) for category in categories for pair in permutations(names, 2))
        lines = []
        for category, (source, target) in islice(pairs, PAIRS["large"][split]):
            line = f"{number:06d}-{source}-{target}:{category}"
            chosen = rng.choice(30, KEYPOINTS, replace=False).tolist()
            annotation = {
                "pair_id": number,
                "filename": line,
                "src_imname": f"{source}.jpg",
                "trg_imname": f"{target}.jpg",
                "src_imsize": [width, height, 3],
                "trg_imsize": [width, height, 3],
                "src_bndbox": [1, 1, width, height],
                "trg_bndbox": [1, 1, width, height],
                "category": category,
                "src_pose": "Left",
                "trg_pose": "Left",
                "src_kps": [points[category, source][index] for index in chosen],
                "trg_kps": [points[category, target][index] for index in chosen],
                "kps_ids": list(map(str, chosen)),
                "mirror": 0,
                "viewpoint_variation": number % 3,
                "scale_variation": number % 3,
                "truncation": number % 4,
                "occlusion": number % 4,
            }
            (root / "PairAnnotation" / split / f"{line}.json").write_text(json.dumps(annotation))
            lines.append(line)
            number += 1
        small = PAIRS["small"][split]
        for layout, kept in (("large", lines), ("small", lines[:: len(lines) // small][:small])):
            (root / "Layout" / layout).mkdir(parents=True, exist_ok=True)
            (root / "Layout" / layout / f"{split}.txt").write_text("\n".join(kept) + "\n")


def experiment(folder: Path, root: Path) -> None:
    """Write params.yaml: the smoke network on the folder's three splits."""
    values = YAML(typ="safe").load((ROOT / "workflow/presets/smoke.yaml").read_text())
    source = {"kind": "path", "path": str(root)}
    values["datasets"] = {
        split: {
            "format": "spair",
            "sources": [source],
            "expect": "spair71k",
            "split": split,
            "layout": "large",
            "limit": None,
        }
        for split in SPLITS
    }
    values["grid"] |= {"backbones": ["dinov2_tiny"], "tunings": [], "weights": ["frozen"], "datasets": ["test"]}
    values["grid"] |= {"train": None, "validate": None, "trunks": []}
    (folder / "params.yaml").write_text(json.dumps(values))


def measure(folder: Path, *command: str) -> tuple[float, float, str]:
    """Seconds, peak memory in MB, and output of one verb in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"semcorr {' '.join(command)} failed:\n{output}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, output


# Runs the command line and says how many JSON files it opened for reading.
WATCHED = """
import sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" and args[1] in ("r", "rb") else None)
from semcorr import cli
cli.main(sys.argv[1:])
print(sum(name.endswith(".json") for name in opened), "JSON files opened")
"""


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        root = folder / "SPair-71k"
        write(root)
        experiment(folder, root)
        start = time.perf_counter()
        for split in SPLITS:
            for line in (root / "Layout/large" / f"{split}.txt").read_text().split():
                json.loads((root / "PairAnnotation" / split / f"{line}.json").read_text())
        bare = time.perf_counter() - start
        print(f"bare loop over 70,958 JSON files: {bare:.1f} s")
        indexing = 0.0
        for command in (
            ("check", str(root), "--expect", "spair71k"),
            *(("fetch", split) for split in SPLITS),
            ("weights", "dinov2_tiny", "frozen"),
            ("extract", "dinov2_tiny", "frozen", "test"),
            ("match", "dinov2_tiny", "frozen", "test", "argmax"),
        ):
            seconds, memory, output = measure(folder, *command)
            indexing += seconds if command[0] in ("check", "fetch") else 0
            print(f"semcorr {' '.join(command).replace(str(root), root.name)}: {seconds:.1f} s, {memory:.0f} MB")
            print("    " + output.strip().replace("\n", "\n    "))
        print(f"checked and indexed in {indexing:.1f} s, {indexing / bare:.1f} times the bare loop, done once")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"(this script itself: {own:.0f} MB)")


if __name__ == "__main__":
    main()
