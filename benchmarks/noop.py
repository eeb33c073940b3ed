"""What an engine costs with nothing to do, on a finished grid of spair71k's size.

The grid of workflow/presets/spair71k.yaml over tiny networks and toy datasets, run once by Snakemake in a copy of the
project (some minutes). Then the engines are called in turn, and medians taken. Beside DVC stands DVC with ruamel.yaml's
parser in Python in place of the one in C, which is among semcorr's dependencies for this.

    python benchmarks/noop.py
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, preset, seconds

from semcorr import params
from semcorr.engine import graph

IN_PYTHON = "import sys; sys.modules['_ruamel_yaml'] = None; from dvc.cli import main; sys.exit(main(['repro']))"
COMMANDS = {
    "snakemake --cores all": (["snakemake", "--cores", "all"], "Nothing to be done"),
    "dvc repro": (["dvc", "repro"], "Stage 'headline' didn't change"),
    "dvc repro, YAML read in Python": ([sys.executable, "-c", IN_PYTHON], "Stage 'headline' didn't change"),
}
TOYS = {"spair_trn": "trn", "spair_val": "val", "spair_test": "test", "pfwillow": None}


def wide() -> dict:
    """The parameters: spair71k's axes over what is small."""
    values, whole = preset("smoke"), preset("spair71k")
    full = whole["grid"]
    toys = values["datasets"]
    spair, willow = toys["toy_spair_trn"], toys["toy_willow"]
    values["datasets"] = {name: spair | {"split": split} if split else willow for name, split in TOYS.items()}
    for backbone in values["backbones"].values():
        backbone["overrides"]["depth"] = 5
        backbone["layer"] = "neck" if backbone["family"] == "sam" else 4
    values["trunk"]["blocks"] = 4
    tuning = values["tunings"]["last1"] | {"epochs": 1}
    values["tunings"] = {name: tuning | {"blocks": whole["tunings"][name]["blocks"]} for name in full["tunings"]}
    values["grid"] = full | {"backbones": list(values["backbones"])}
    return values


def project(folder: Path) -> None:
    """A copy of the project with these parameters, as a repository of its own."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith(("metrics/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(json.dumps(wide()))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


def main() -> None:
    """Make the grid, call the engines, and print seconds."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    runs = arguments.parse_args().runs
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        project(folder)

        def call(command: list[str], says: str = "") -> None:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if done.returncode or says not in done.stdout + done.stderr:
                sys.exit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

        jobs = [job for job in graph.Graph(params.load(folder / "params.yaml")).jobs() if job.stage != "validate"]
        print(f"making a grid of {len(jobs)} jobs", flush=True)
        made = seconds(lambda: call(["snakemake", "--cores", "all"]))
        times = [[seconds(lambda c=command: call(*c)) for command in COMMANDS.values()] for _ in range(runs)]
    print(f"made in {made:.0f} s; with nothing to do, of {runs} calls each:")
    for name, found in zip(COMMANDS, zip(*times, strict=True), strict=True):
        print(f"  {name}: {statistics.median(found):.1f} s ({min(found):.1f} to {max(found):.1f})")


if __name__ == "__main__":
    main()
