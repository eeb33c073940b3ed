"""A COCO keypoints file of 300 MB: how long it takes to read and check, in how much memory.

Writes a file as large as COCO's own (64,115 images, 262,465 objects with 17 keypoints and an outline), then reads it,
each in a process of its own, with `semcorr.datasets.coco` and with the named alternative, Python's `json`, which checks
nothing.

    python benchmarks/coco_file.py
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGES, OBJECTS, NAMES = 64_115, 262_465, [f"part {number}" for number in range(17)]
READERS = ("semcorr", "json")


def write(path: Path) -> None:
    """Write the file, object by object."""
    draw = random.Random(0)
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "width": 640, "height": 480, "coco_url": "x" * 60}
        for number in range(IMAGES)
    ]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(images)}, "annotations": [')
        for number in range(OBJECTS):
            points = [
                value for _ in NAMES for value in (draw.randrange(640), draw.randrange(480), draw.choice((0, 1, 2)))
            ]
            outline = [round(640 * draw.random(), 2) for _ in range(100)]
            annotation = {"id": number, "image_id": draw.randrange(IMAGES), "category_id": 1, "keypoints": points}
            annotation |= {"bbox": [1.5, 2.5, 100.25, 200.75], "iscrowd": 0, "segmentation": [outline], "area": 1234.5}
            file.write((", " if number else "") + json.dumps(annotation))
        file.write(f'], "categories": [{{"id": 1, "name": "person", "keypoints": {json.dumps(NAMES)}}}]}}')


def read(reader: str, path: Path) -> None:
    """Read the file and print time and memory."""
    begin = time.perf_counter()
    if reader == "json":
        count = len(json.loads(path.read_bytes())["annotations"])
    else:
        from semcorr.datasets import coco

        begin = time.perf_counter()
        items, _ = coco.read_items(coco.decoded(path.read_bytes(), path), path)
        count = len(items)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{reader:8} {count:,} objects in {time.perf_counter() - begin:.1f} s, {peak:.1f} GB at its peak")


def main() -> None:
    """Write the file and read it with each reader."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keypoints.json"
        write(path)
        print(f"{path.stat().st_size / 1e6:,.0f} MB")
        for reader in READERS:
            subprocess.run([sys.executable, __file__, reader, str(path)], check=True)


if __name__ == "__main__":
    read(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()
