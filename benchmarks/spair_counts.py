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
from pathlib import Path

from ruamel.yaml import YAML
from standin import write_spair

from semcorr.datasets.spair import SPLITS

ROOT = Path(__file__).parents[1]
SIZE = (96, 128)  # height, width


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
        write_spair(root, sizes=(SIZE,))
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
