"""The presets spair71k and strong at full size on a CPU, with a network of width 96: time, memory and disk by stage.

Draws stand-ins for SPair-71k (18 categories, 1,800 images, 70,958 pairs) and PF-WILLOW, and a file of random weights
in DINOv2's official form. Then reduces each preset to one backbone and one epoch by images, and runs its jobs one after
the other, each in a process of its own: `python -m semcorr <stage> <cell>`. Beside each stage stands what `semcorr
plan` says before anything is there. Above 4 GB of memory, or off by more than a factor of two, is marked with (!).

    python benchmarks/rehearsal.py --out rehearsal.json    # hours, and some 10 GB in the temporary folder
    python benchmarks/rehearsal.py --scales 0.25 1         # and how each stage grows
    python benchmarks/rehearsal.py --scale 0.02            # a try, in minutes

With several scales a column says how a stage's time, without that of its imports, grows with its data (images or
pairs): an exponent, between the first scale and the last; nothing where less than a second would be compared.

With --keep, the folder stays, and a run that was stopped goes on there with the jobs that are left.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import standin
from common import ROOT, preset

from semcorr import params
from semcorr.artifacts.files import remove, replacing
from semcorr.datasets.spair import CATEGORIES
from semcorr.engine import graph

BACKBONE = "dinov2_b14"
WIDTH, HEADS = 96, 3
IMAGES = 7  # in a step, where the preset trains by pairs
MEMORY = 4e9  # bytes, at most
FACTOR = 2.0  # between plan and truth, at most
STEEP = 1.2  # an exponent above this is marked
MEASURABLE = 1.0  # seconds
# What a stage goes through one by one.
DATA = dict.fromkeys(("extract", "trunk", "finetune", "adapt"), "images")
DATA |= dict.fromkeys(("fetch", "match", "evaluate", "draw", "report", "headline"), "pairs")


def main() -> None:
    """Run every preset at every scale and print a table of each."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--presets", nargs="+", default=["spair71k", "strong"])
    options.add_argument("--scales", "--scale", nargs="+", type=float, default=[1.0], help="of the number of images")
    options.add_argument("--depth", type=int, default=6, help="blocks of the network")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="work and stay there; goes on if stopped")
    options.add_argument("--out", type=Path, help="JSON file for every job's numbers")
    options = options.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.presets}
    with _folder(options.keep) as folder:
        overrides = {"embed_dim": WIDTH, "depth": options.depth, "num_heads": HEADS}
        weights = folder / f"dinov2_{WIDTH}_{options.depth}.pth"
        if not weights.exists():
            with replacing(weights) as partial:
                model = preset("spair71k")["backbones"][BACKBONE]["model"]
                _apart(standin.write_dinov2, partial, model, overrides)
        starts = {} if len(options.scales) == 1 else _imports(folder)
        for scale in sorted(options.scales):
            data = folder / f"{scale:g}"
            for name, write in (("SPair-71k", standin.write_spair), ("PF-dataset", standin.write_willow)):
                if not (data / name).exists():
                    with replacing(data / name) as partial:
                        partial.mkdir()
                        write(partial, scale)
            for name, known in runs.items():
                values = reduced(name, data, weights, overrides, options.threads)
                known.append({"scale": scale} | rehearse(data / name, values, scale))
                if options.out:
                    options.out.write_text(json.dumps({"imports": starts, "runs": runs}, indent=1) + "\n")
        for name, known in runs.items():
            print(f"\n{name}, {BACKBONE} of width {WIDTH} and {options.depth} blocks, {options.threads} threads\n")
            print("\n".join(table(known, starts)))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n(This script itself: {own:.0f} MB, which no process that it starts can be seen to stay below.)")


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Where everything is written."""
    if kept is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process: torch's memory here would count for every process started from here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def reduced(name: str, data: Path, weights: Path, overrides: dict[str, Any], threads: int) -> dict[str, Any]:
    """A preset with one backbone, a small one, and one epoch by images, on the stand-ins."""
    values = preset(name)
    spec = values["backbones"][BACKBONE]
    spec |= {"overrides": overrides, "layer": overrides["depth"] - 1}
    spec |= {"weights": {"kind": "file", "path": str(weights), "sha256": None}}
    values |= {"backbones": {BACKBONE: spec}, "fusions": {}, "threads": threads}
    values["grid"] |= {"backbones": [BACKBONE], "fusions": []}
    values["runtime"] |= {"device": "cpu", "workers": threads}
    for dataset in values["datasets"].values():
        path = data / ("SPair-71k" if dataset["format"] == "spair" else "PF-dataset")
        dataset |= {"expect": "any", "sources": [{"kind": "path", "path": str(path)}]}
    for tuning in values["tunings"].values():
        images = tuning["batches"].get("images", IMAGES)
        tuning |= {"epochs": 1, "batches": {"by": "images", "images": images}}
    return values


def rehearse(folder: Path, values: dict[str, Any], scale: float) -> dict[str, Any]:
    """Run every job of an experiment that was not run yet.

    Returns:
        "speed" in operations per second, and "jobs": name -> stage, seconds, cpu (seconds of processors), memory, disk,
        plan_seconds, plan_disk, and data, the number of images or pairs.
    """
    folder.mkdir(exist_ok=True)
    file, text, log = folder / "params.yaml", json.dumps(values, indent=1), folder / "rehearsal.json"
    if file.exists() and file.read_text() != text:
        sys.exit(f"{folder}: holds a rehearsal with other options. Remove it, or keep another folder")
    file.write_text(text)
    every = list(graph.Graph(params.load(file)).jobs())
    if not log.exists():
        speed, plan = _apart(planned, folder)
        _write(log, {"speed": speed, "plan": plan, "jobs": {}})
    state = json.loads(log.read_text())
    for number, job in enumerate(every, start=1):
        if job.name in state["jobs"]:
            continue
        clear(job, folder)
        before = _bytes(folder)
        seconds, cpu, memory = measured(folder, "-m", *job.command.split()[2:])
        planned_seconds, planned_disk = state["plan"][job.name]
        state["jobs"][job.name] = {
            "stage": job.stage,
            "data": _data(job, values, scale),
            "seconds": seconds,
            "cpu": cpu,
            "memory": memory,
            "disk": _bytes(folder) - before,
            "plan_seconds": planned_seconds,
            "plan_disk": planned_disk,
        }
        _write(log, state)
        done = f"{scale:g} {folder.name} [{number}/{len(every)}] {job.title}"
        print(f"{done}: {seconds:.1f} s, {memory / 1e6:,.0f} MB", file=sys.stderr, flush=True)
    return {"speed": state["speed"], "jobs": state["jobs"]}


def _write(log: Path, state: dict[str, Any]) -> None:
    with replacing(log) as partial:
        partial.write_text(json.dumps(state))


def planned(folder: Path) -> tuple[float, dict[str, tuple[float, float]]]:
    """The speed of this machine, and each job's seconds and bytes, as `semcorr plan` estimates them."""
    from semcorr.engine.plan import Costs, speed_here

    os.chdir(folder)
    settings = params.load()
    jobs, (speed, _) = graph.Graph(settings), speed_here(settings)
    costs = Costs(jobs)
    found = {job.name: costs.of(job) for job in jobs.jobs()}
    return speed, {name: (cost.seconds + cost.flops / speed, cost.disk) for name, cost in found.items() if cost}


def clear(job: graph.Job, folder: Path) -> None:
    """Remove what a killed run of a job has left, so that it does not go on there but is measured whole."""
    for path in map(folder.joinpath, job.outputs.values()):
        for left in (path, path.with_name("last.pt"), *path.parent.glob(f".{path.name}.*")):
            remove(left)


def measured(folder: Path, *arguments: str) -> tuple[float, float, float]:
    """Seconds, seconds of processors, and peak memory in bytes of a Python process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    start = time.perf_counter()
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(arguments)} failed in {folder}:\n{Path(log.name).read_text()[-3000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _bytes(folder: Path) -> int:
    """Bytes of all files below a folder; a file of several names counts once."""
    stats = (path.lstat() for path in folder.rglob("*") if path.name not in ("log.txt", "rehearsal.json"))
    return sum({stat.st_ino: stat.st_size for stat in stats if not stat.st_mode & 0o040000}.values())


def _data(job: graph.Job, values: dict[str, Any], scale: float) -> int:
    """How many images, or pairs, a job goes through; 0 if that is not what it does."""
    if job.stage not in DATA:
        return 0
    names = [job.cell["dataset"]] if "dataset" in job.cell else values["grid"]["datasets"]
    if job.stage == "finetune":
        names = [values["grid"]["train"]]
    total = 0
    for name in names:
        if values["datasets"][name]["format"] == "spair":
            images, pairs, _ = standin.count(values["datasets"][name]["split"], scale)
            images *= CATEGORIES
        else:
            each = standin.willow_images(scale)
            images, pairs = (count * len(standin.WILLOW) for count in (each, each * (each - 1)))
        total += images if DATA[job.stage] == "images" else pairs
    return total


def _imports(folder: Path) -> dict[str, float]:
    """Seconds that each stage's process takes before it begins."""
    return {stage: measured(folder, "-c", f"import semcorr.cli, semcorr.stages.{stage}")[0] for stage in graph.STAGES}


def table(runs: list[dict[str, Any]], starts: dict[str, float]) -> list[str]:
    """Markdown: a row for each stage at the last scale, and how it grows from the first one."""
    first, last = (by_stage(run["jobs"]) for run in (runs[0], runs[-1]))
    heads = ["stage", "jobs", "time, s", "plan, s", "plan/time", "memory, MB", "disk, MB", "plan, MB", "plan/disk"]
    if starts:
        heads.append(f"exponent from scale {runs[0]['scale']:g}")
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for stage, row in [*last.items(), ("all", _sum(last.values()))]:
        memory = f"{row['memory'] / 1e6:,.0f}{' (!)' if row['memory'] > MEMORY else ''}"
        cells = [stage, row["jobs"], f"{row['seconds']:,.1f}", f"{row['plan_seconds']:,.1f}"]
        cells += [_ratio(row["plan_seconds"], row["seconds"]), memory]
        cells += [f"{row[key] / 1e6:,.1f}" for key in ("disk", "plan_disk")]
        cells.append(_ratio(row["plan_disk"], row["disk"]) if row["plan_disk"] else "")
        if starts:
            cells.append(_exponent(stage, first[stage], row, starts[stage]) if stage != "all" else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    scale = f"scale {runs[-1]['scale']:g}"
    return [*lines, "", f"{scale}, {runs[-1]['speed'] / 1e9:.0f} GFLOP/s as `semcorr plan` measured them"]


def by_stage(jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sums of the jobs of each stage."""
    stages = {job["stage"]: [one for one in jobs.values() if one["stage"] == job["stage"]] for job in jobs.values()}
    return {stage: _sum([one | {"jobs": 1} for one in found]) for stage, found in stages.items()}


def _sum(rows: Any) -> dict[str, Any]:
    """Sums of rows, but the largest of their memories."""
    rows = list(rows)
    keys = ("jobs", "seconds", "disk", "plan_seconds", "plan_disk", "data")
    return {key: sum(row[key] for row in rows) for key in keys} | {"memory": max(row["memory"] for row in rows)}


def _ratio(plan: float, truth: float) -> str:
    ratio = plan / max(truth, 1e-9)
    return f"{ratio:.2f}{'' if 1 / FACTOR <= ratio <= FACTOR else ' (!)'}"


def _exponent(stage: str, small: dict[str, Any], large: dict[str, Any], start: float) -> str:
    """How a stage's time grows with its data, or nothing where that cannot be told."""
    before, after = (row["seconds"] - start * row["jobs"] for row in (small, large))
    if after < MEASURABLE or before <= 0 or small["data"] in (0, large["data"]):
        return ""
    power = math.log(after / before) / math.log(large["data"] / small["data"])
    return f"{power:.2f} of {DATA[stage]}{' (!)' if power > STEEP else ''}"


if __name__ == "__main__":
    main()
