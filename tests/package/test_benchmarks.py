"""Benchmarks are run by hand: that they can be, by one that does all of them in small."""

import json
import math
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"


def _run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)


def test_the_table_of_a_gpu_on_tiny_sizes(tmp_path):
    out = tmp_path / "gpu.json"
    done = _run("--device", "cpu", "--small", "--runs", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads(out.read_text())
    assert (table["device"], table["small"]) == ("CPU", True)
    assert [row["what"].split(",")[0] for row in table["rows"]] == [
        "extract",
        "steps on the cached trunk",
        "training",
        "match",
    ]
    for row in table["rows"]:
        assert row["what"] in done.stdout
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in ("ours", "theirs", "ratio") if row[key])
    assert [row["memory"] for row in table["rows"]] == [None] * 4
    assert "tiny sizes" in done.stdout


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # nor with one that it may not see
    done = _run()
    assert done.returncode == 2
    assert done.stderr == "no GPU here; on a CPU the script can only be tried: --device cpu --small\n"
