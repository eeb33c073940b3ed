"""What the benchmarks share: an experiment in a temporary folder, and medians of several runs."""

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from semcorr import cli, params
from semcorr.engine import graph

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("SEMCORR_DATA", ROOT.parent / "shared/datasets"))  # real benchmarks, by their own names


def preset(name: str) -> dict[str, Any]:
    """A preset as plain values."""
    return YAML(typ="safe").load((ROOT / "workflow/presets" / f"{name}.yaml").read_text())


@contextlib.contextmanager
def experiment(values: dict[str, Any]) -> Iterator[Callable[..., graph.Job]]:
    """A temporary folder with this params.yaml; yields a function that runs one stage in it and returns its job."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        Path("params.yaml").write_text(json.dumps(values))

        def run(stage: str, *cell: str) -> graph.Job:
            cli.run_stage(cli.parser().parse_args([stage, *cell]))
            return graph.Graph(params.load()).job(stage, *cell)

        try:
            yield run
        finally:
            os.chdir(before)


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median seconds of each, called in turn, so that both meet the machine's moods."""
    times = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    return statistics.median(our for our, _ in times), statistics.median(their for _, their in times)
