"""Damage to every kind of file that semcorr reads: cut at 50 lengths, and with one of 200 bits flipped.

    python tests/sweep.py

Each damaged file is read as people would have it read: by a stage, by `check`, as an own image, by the page. The table
says how often that ended in one clear line, how often in what the whole file gives (the bit was one that says nothing),
and how often in something else: a text, or a picture, that is another one, but whole. A traceback or a hang is a fault;
so is another result from a file of semcorr's own, since those carry checksums. Exit code 1 if there was one.
"""

import argparse
import collections
import contextlib
import copy
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage

from semcorr import cli, params
from semcorr.api import images
from semcorr.api.serve import application
from semcorr.artifacts import store
from semcorr.artifacts.files import write_json
from semcorr.datasets import pfwillow, sources, spair, toy, verify
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.networks.backbones.weights import get
from semcorr.params import read_yaml

ROOT = Path(__file__).parents[1]
B, D = "dinov2_tiny", "toy_willow"
SLOW = 30.0  # seconds
Read = Callable[[], object]


def run(*words: str) -> str:
    """A stage, in this process."""
    with contextlib.redirect_stderr(io.StringIO()):
        return cli.run_stage(cli.parser().parse_args(list(words)))


def outputs(*words: str) -> Read:
    """Runs a stage; what it then has written."""

    def read() -> object:
        job = graph.Graph(params.load()).job(*words)
        for path in job.outputs.values():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        run(*words)
        return {str(path): path.read_bytes() for path in job.outputs.values() if path.is_file()}

    return read


def prepare(values: dict) -> None:
    """A whole small experiment in this folder."""
    values["grid"] |= {"backbones": [B]}
    write_json(Path("params.yaml"), values)
    for job in graph.Graph(params.load()).jobs():
        run(job.stage, *job.cell.values())


def kinds() -> dict[str, tuple[Path, Read, bool]]:
    """Name -> file, what reads it, and whether it is one of semcorr's own, whose damage always shows."""
    jobs = graph.Graph(params.load())
    place = {
        "pairs": jobs.job("fetch", D).outputs["pairs"],
        "images": jobs.job("fetch", D).outputs["images"],
        "weights": jobs.job("weights", B, "frozen").outputs["tensors"],
        "store": jobs.job("extract", B, "frozen", D).outputs["store"],
        "trunk": jobs.job("trunk", B, D).outputs["store"],
        "tuned": jobs.job("finetune", B, "last1").outputs["tensors"],
        "matches": jobs.job("match", B, "frozen", D, "argmax").outputs["matches"],
        "cell": jobs.job("evaluate", B, "frozen", D, "argmax").outputs["cell"],
        "scores": jobs.job("evaluate", B, "frozen", D, "argmax").outputs["pairs"],
        "gallery": jobs.job("draw", B, "frozen", D).outputs["gallery"],
    }
    cell = (B, "frozen", D)
    found: dict[str, tuple[Path, Read, bool]] = {
        "Parquet: pairs, by match": (place["pairs"], outputs("match", *cell, "argmax"), True),
        "Parquet: images, by extract": (place["images"], outputs("extract", *cell), True),
        "Parquet: matches, by evaluate": (place["matches"], outputs("evaluate", *cell, "argmax"), True),
        "Parquet: scores, by report": (place["scores"], outputs("report"), True),
        "JSON: a cell, by report": (place["cell"], outputs("report"), True),
        "JSON: a gallery, by report": (place["gallery"], outputs("report"), True),
        "HDF5: a store, by match": (place["store"], outputs("match", *cell, "argmax"), True),
        "HDF5: a store, by semcorr store": (place["store"], lambda: store.describe(place["store"]), True),
        "HDF5: a trunk, by adapt": (place["trunk"], outputs("adapt", B, "last1", D), True),
        "safetensors: weights, by extract": (place["weights"], outputs("extract", *cell), True),
        "safetensors: tuned, by adapt": (place["tuned"], outputs("adapt", B, "last1", D), True),
        "last.pt, by finetune": (place["tuned"].with_name("last.pt"), outputs("finetune", B, "last1"), True),
        "params.yaml": (Path("own/params.yaml"), lambda: params.load(Path("own/params.yaml")).to_dict(), False),
    }
    return found | foreign(Path("own"))


def foreign(own: Path) -> dict[str, tuple[Path, Read, bool]]:
    """Files that people bring."""
    own.mkdir()
    shutil.copy(ROOT / "workflow/presets/smoke.yaml", own / "params.yaml")
    toy.write_pfwillow(own / "W", 3, {"all": 2})
    toy.write_spair(own / "S", 3, {"trn": 2, "val": 2, "test": 2})
    willow, pairs = own / "W", own / "S"
    image, mat = sorted(willow.glob("*/*.png"))[0], sorted(willow.glob("*/*.mat"))[0]
    line = spair.read_layout(pairs, "test", "large")[0]
    one = PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    spec = params.load().backbones[B]
    state = get(spec, spec.weights, own)[0].net.state_dict()
    torch.save(state, own / "new.pth")
    torch.save(state, own / "old.pth", _use_new_zipfile_serialization=False)
    from safetensors.torch import save_file

    save_file(state, own / "a.safetensors")
    with zipfile.ZipFile(own / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(willow.rglob("*.*")):
            file.write(path, path.relative_to(own))
    shutil.make_archive(str(own / "a"), "gztar", own, "W")
    shutil.make_archive(str(own / "a"), "tar", own, "W")
    benchmark = pfwillow.read(willow)
    rows = []
    for pair in benchmark.pairs:
        points = (pair.source_keypoints, pair.target_keypoints)
        numbers = [number for side in points for axis in (0, 1) for number in (point[axis] for point in side)]
        rows.append(",".join([f"{pair.source}.png", f"{pair.target}.png", *map(str, numbers)]))
    (own / "list.csv").write_text("\n".join(["a,b" + ",x" * 40, *rows]))

    def checked(folder: Path) -> Read:
        return lambda: verify.check(verify.recognise(folder, "any"), folder)

    def unpacked(path: Path) -> Read:
        def read() -> object:
            shutil.rmtree("data/sources", ignore_errors=True)
            return pfwillow.read(sources.root_of(sources.open_path(path), "pfwillow")).pairs

        return read

    def weights(path: Path) -> Read:
        source = params.FileWeights(kind="file", path=str(path), sha256=None)
        return lambda: {k: v.numpy().tobytes() for k, v in get(spec, source, own)[0].net.state_dict().items()}

    matcher = images.Matcher()
    client = application(matcher, {}).test_client()

    def uploaded(path: Path) -> Read:
        def read() -> object:
            answer = client.post("/images", data=path.read_bytes(), content_type="application/octet-stream")
            if answer.status_code == 422:
                raise UserError(answer.json["error"])
            assert answer.status_code == 200, answer.status
            return answer.json

        return read

    found = {
        "PNG of a dataset, by check": (image, checked(willow), False),
        "JPEG of a dataset, by check": (sorted(pairs.glob("JPEGImages/*/*.jpg"))[0], checked(pairs), False),
        "mask, by check": (sorted(pairs.glob("Segmentation/*/*.png"))[0], checked(pairs), False),
        ".mat, by check": (mat, checked(willow), True),
        "JSON of a pair, by check": (pairs / "PairAnnotation/test" / f"{line}.json", checked(pairs), False),
        "JSON of an image, by check": (sorted(pairs.glob("ImageAnnotation/*/*.json"))[0], checked(pairs), False),
        "layout, by check": (pairs / "Layout/large/test.txt", checked(pairs), False),
        "CSV, a list of pairs": (own / "list.csv", lambda: pfwillow.read(willow, own / "list.csv").pairs, False),
        "zip": (own / "a.zip", unpacked(own / "a.zip"), True),
        "tar.gz": (own / "a.tar.gz", unpacked(own / "a.tar.gz"), True),
        "tar, which has no checksum of what it holds": (own / "a.tar", unpacked(own / "a.tar"), False),
        ".pth": (own / "new.pth", weights(own / "new.pth"), True),
        ".pth, old format": (own / "old.pth", weights(own / "old.pth"), False),
        ".safetensors of others": (own / "a.safetensors", weights(own / "a.safetensors"), False),
    }
    for suffix in ("png", "jpg", "webp", "avif", "tiff", "gif", "bmp"):
        path = own / f"one.{suffix}"
        one.save(path)
        found[f"own image, {suffix}"] = (path, lambda path=path: images.open_image(path).tobytes(), False)
    found["upload to the page, png"] = (own / "one.png", uploaded(own / "one.png"), False)
    return found


def damages(content: bytes, cuts: int, flips: int, rng: random.Random) -> list[bytes]:
    """The content cut at so many lengths, and with so many single bits flipped."""
    lengths = sorted({*(round(len(content) * at / cuts) for at in range(cuts)), *range(min(len(content), cuts // 5))})
    found = [content[:length] for length in lengths[:cuts]]
    for _ in range(flips):
        at = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        found.append(bytes(flipped))
    return found


def sweep(path: Path, read: Read, cuts: int, flips: int) -> tuple[collections.Counter, list[str]]:
    """How the damaged files were read, and what went wrong."""
    content, rng = path.read_bytes(), random.Random(0)
    whole = read()
    counts, faults = collections.Counter(), []
    for number, damaged in enumerate(damages(content, cuts, flips, rng)):
        path.unlink()
        path.write_bytes(damaged)
        start = time.monotonic()
        try:
            counts["same" if read() == whole else "other"] += 1
        except UserError as error:
            counts["clear"] += 1
            if "Traceback" in str(error) or len(str(error)) > 1000:
                faults.append(f"{number}: {error}")
        except Exception:
            counts["traceback"] += 1
            faults.append(f"{number}: " + "".join(traceback.format_exc().splitlines(keepends=True)[-6:]))
        if time.monotonic() - start > SLOW:
            counts["slow"] += 1
    path.unlink()
    path.write_bytes(content)
    assert read() == whole  # and what later kinds read is there again
    return counts, faults


def main() -> None:
    """Sweep over all kinds, or those whose names hold a word."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--flips", type=int, default=200)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare(copy.deepcopy(read_yaml(ROOT / "workflow/presets/smoke.yaml")))
        print("| file | cases | one clear line | as the whole file | another reading | tracebacks | slow |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, (path, read, ours) in kinds().items():
            if options.word not in name:
                continue
            counts, faults = sweep(path, read, options.cuts, options.flips)
            row = [counts[key] for key in ("clear", "same", "other", "traceback", "slow")]
            print(f"| {name} | {sum(row[:4])} | " + " | ".join(map(str, row)) + " |", flush=True)
            wrong += len(faults) + counts["slow"] + (counts["other"] if ours else 0)
            for fault in faults[:3]:
                print(json.dumps(fault), file=sys.stderr)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
