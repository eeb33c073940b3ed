"""The stage graph: which jobs an experiment has, what each reads and writes, and what its outputs must say they are.

A stage is one verb. dvc.yaml and the Snakefile describe the same graph in each engine's own words; a test holds all
three against each other. The table here is what the stages themselves use: paths, the parameters that count for a
stage, the package files its results depend on, and the fingerprint that every output carries.

A fingerprint is a hash of the stage's name and cell, the parameters it reads and its inputs' fingerprints. It holds
no time and no code, so it says *what was asked for*. An output whose fingerprint is not the one params.yaml asks for
now was made under other parameters, by whichever engine, and is never taken for current.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from semcorr.errors import UserError
from semcorr.files import canonical_json, sha256
from semcorr.params import Params

NETWORK = ("backbones.{backbone}.family", "backbones.{backbone}.model", "backbones.{backbone}.overrides")
SIZE, COMPUTE, PRECISION = (f"backbones.{{backbone}}.{key}" for key in ("image_size", "compute", "precision"))
LAYER = ("backbones.{backbone}.layer", "backbones.{backbone}.facet")
READ = (*LAYER, "backbones.{backbone}.norm")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the graph; texts in braces are filled with a cell's values.

    Attributes:
        axes: what makes a cell, in the order of the command line.
        reads: keys of params.yaml that count for the result.
        inputs, outputs: paths by role. The first output carries the fingerprint.
        gathers: stages whose every output is an input too.
        code: package files that the result depends on.
    """

    axes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    inputs: dict[str, str]
    gathers: tuple[str, ...] = ()
    outputs: dict[str, str]
    code: tuple[str, ...]


STORE = "features/{backbone}/{weights}/{dataset}.h5"
TRUNK = "features/{backbone}/trunk/{dataset}.h5"
WEIGHTS = "data/weights/{backbone}/{weights}.safetensors"
MATCHES = "matches/{backbone}/{weights}/{dataset}/{rule}.parquet"
CELL = "metrics/{preset}/cells/{backbone}/{weights}/{dataset}/{rule}.json"
PAIRS = "metrics/{preset}/cells/{backbone}/{weights}/{dataset}/{rule}.parquet"
GALLERY = "metrics/{preset}/galleries/{backbone}/{weights}/{dataset}.json"
CHECKED = "data/params.checked"
UNMARKED = ("params", "checked", "watched")  # roles of inputs that carry no fingerprint

_DATASETS = ("semcorr/datasets/base.py", "semcorr/datasets/decode.py")
_STORES = ("semcorr/store.py", "semcorr/geometry.py", "semcorr/runtime.py", *_DATASETS)
_NETWORKS = ("semcorr/backbones", "semcorr/finite.py", *_STORES)
_FILES = ("semcorr/files.py", "semcorr/provenance.py")

STAGES: dict[str, Stage] = {
    "validate": Stage(
        inputs={"params": "params.yaml"},
        outputs={"checked": CHECKED},
        code=("semcorr/params.py", "semcorr/architectures.py"),
    ),
    "fetch": Stage(
        axes=("dataset",),
        reads=("datasets.{dataset}",),
        inputs={"checked": CHECKED, "watched": "watched/datasets/{dataset}"},
        outputs={
            "images": "data/{dataset}/images.parquet",
            "pairs": "data/{dataset}/pairs.parquet",
            "folder": "data/{dataset}/images",
        },
        code=("semcorr/stages/fetch.py", "semcorr/datasets", "semcorr/download.py", *_FILES),
    ),
    "weights": Stage(
        axes=("backbone", "weights"),
        reads=(*NETWORK, "backbones.{backbone}.weights", "baselines.{weights}"),
        inputs={"checked": CHECKED, "watched": "watched/weights/{backbone}"},
        outputs={"tensors": WEIGHTS},
        code=(
            "semcorr/stages/weights.py",
            "semcorr/backbones",
            "semcorr/finite.py",
            "semcorr/geometry.py",
            "semcorr/download.py",
            *_FILES,
        ),
    ),
    "extract": Stage(
        axes=("backbone", "weights", "dataset"),
        reads=(*NETWORK, SIZE, *READ, "backbones.{backbone}.debias", COMPUTE, PRECISION, "threads"),
        inputs={"tensors": WEIGHTS, "images": "data/{dataset}/images.parquet"},
        outputs={"store": STORE},
        code=("semcorr/stages/extract.py", *_NETWORKS, *_FILES),
    ),
    "trunk": Stage(
        axes=("backbone", "dataset"),
        reads=(*NETWORK, SIZE, *LAYER, COMPUTE, "trunk", "threads"),
        inputs={
            "tensors": "data/weights/{backbone}/frozen.safetensors",
            "images": "data/{dataset}/images.parquet",
        },
        outputs={"store": TRUNK},
        code=("semcorr/stages/trunk.py", "semcorr/stages/extract.py", *_NETWORKS, *_FILES),
    ),
    "finetune": Stage(
        axes=("backbone", "tuning"),
        reads=(*NETWORK, SIZE, *READ, COMPUTE, PRECISION, "trunk", "tunings.{tuning}", "threads"),
        inputs={
            "tensors": "data/weights/{backbone}/frozen.safetensors",
            "train": "features/{backbone}/trunk/{train}.h5",
            "train_pairs": "data/{train}/pairs.parquet",
            "train_images": "data/{train}/images.parquet",
            "validate": "features/{backbone}/trunk/{validate}.h5",
            "validate_pairs": "data/{validate}/pairs.parquet",
        },
        outputs={
            "tensors": "checkpoints/{backbone}/{tuning}/best.safetensors",
            "curve": "checkpoints/{backbone}/{tuning}/curve.csv",
            "steps": "checkpoints/{backbone}/{tuning}/steps.csv",
        },
        code=(
            "semcorr/stages/finetune.py",
            "semcorr/stages/extract.py",
            "semcorr/download.py",
            "semcorr/training.py",
            "semcorr/tail.py",
            "semcorr/losses.py",
            "semcorr/matching.py",
            "semcorr/pck.py",
            *_NETWORKS,
            *_FILES,
        ),
    ),
    "adapt": Stage(
        axes=("backbone", "tuning", "dataset"),
        reads=(*NETWORK, *READ, COMPUTE, PRECISION, "trunk", "threads"),
        inputs={
            "frozen": "data/weights/{backbone}/frozen.safetensors",
            "tuned": "checkpoints/{backbone}/{tuning}/best.safetensors",
            "trunk": TRUNK,
        },
        outputs={"store": "features/{backbone}/{tuning}/{dataset}.h5"},
        code=("semcorr/stages/adapt.py", "semcorr/tail.py", *_NETWORKS, *_FILES),
    ),
    "match": Stage(
        axes=("backbone", "weights", "dataset", "rule"),
        reads=("rules.{rule}", "threads"),
        inputs={"store": STORE, "pairs": "data/{dataset}/pairs.parquet"},
        outputs={"matches": MATCHES},
        code=(
            "semcorr/stages/match.py",
            "semcorr/matching.py",
            "semcorr/finite.py",
            "semcorr/pck.py",
            *_STORES,
            *_FILES,
        ),
    ),
    "evaluate": Stage(
        axes=("backbone", "weights", "dataset", "rule"),
        reads=("evaluate", "datasets.{dataset}.format"),
        inputs={"matches": MATCHES},
        outputs={"cell": CELL, "pairs": PAIRS},
        code=("semcorr/stages/evaluate.py", "semcorr/pck.py", *_FILES),
    ),
    "draw": Stage(
        axes=("backbone", "weights", "dataset"),
        reads=("evaluate", "datasets.{dataset}.format", "rules.{drawn}"),
        inputs={
            "matches": "matches/{backbone}/{weights}/{dataset}/{drawn}.parquet",
            "store": STORE,
            "images": "data/{dataset}/images.parquet",
        },
        outputs={"gallery": GALLERY},
        code=(
            "semcorr/stages/draw.py",
            "semcorr/pictures.py",
            "semcorr/pck.py",
            "semcorr/store.py",
            "semcorr/geometry.py",
            *_DATASETS,
            *_FILES,
        ),
    ),
    "report": Stage(
        reads=("grid", "evaluate"),
        gathers=("evaluate", "draw"),
        inputs={},
        outputs={
            "html": "metrics/{preset}/report.html",
            "headline": "metrics/{preset}/headline",
            "summary": "metrics/{preset}/summary.json",
            "csv": "metrics/{preset}/summary.csv",
            "markdown": "metrics/{preset}/summary.md",
            "curves": "metrics/{preset}/curves.csv",
            "categories": "metrics/{preset}/categories.csv",
        },
        code=(
            "semcorr/stages/report.py",
            "semcorr/page.py",
            "semcorr/templates",
            "semcorr/pck.py",
            *_FILES,
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage on one cell.

    Attributes:
        stage: its verb.
        cell: value of each axis.
        settings: the parameters that count, by key.
        inputs, outputs: paths by role; `report` has those of each cell as "<stage> <role> <cell>".
        expects: role of an input -> the fingerprint it must carry, if any.
        fingerprint: what the outputs must carry.
    """

    stage: str
    cell: dict[str, str]
    settings: dict[str, Any]
    inputs: dict[str, Path]
    outputs: dict[str, Path]
    expects: dict[str, str]
    fingerprint: str

    @property
    def command(self) -> str:
        """The command line that both engines run."""
        return " ".join(["python -m semcorr", self.stage, *self.cell.values()])


class Graph:
    """All jobs of one experiment."""

    def __init__(self, params: Params):
        self.params = params
        self.values = params.to_dict()
        grid = self.values["grid"]
        self.constants = {key: str(grid[key]) for key in ("train", "validate")} | {"preset": params.preset}
        self.constants["drawn"] = grid["rules"][0] if grid["rules"] else ""
        rows = {key: grid[key] for key in ("backbones", "weights", "datasets", "rules")}
        self.cells: dict[str, list[tuple[str, ...]]] = {
            "validate": [()],
            "fetch": [(name,) for name in self.values["datasets"]],
            "weights": list(product(grid["backbones"], grid["baselines"])),
            "extract": list(product(grid["backbones"], grid["baselines"], grid["datasets"])),
            "trunk": list(product(grid["backbones"], grid["trunks"])),
            "finetune": list(product(grid["backbones"], grid["tunings"])),
            "adapt": list(product(grid["backbones"], grid["tunings"], grid["datasets"])),
            "match": list(product(*rows.values())),
            "evaluate": list(product(*rows.values())),
            "draw": list(product(*[rows[key] for key in ("backbones", "weights", "datasets")])),
            "report": [()],
        }

    def job(self, stage: str, *cell: str) -> Job:
        """The job of `stage` on `cell`, its values in the order of the stage's axes.

        Raises:
            UserError: the experiment has no such cell.
        """
        if cell not in self.cells[stage]:
            known = "\n  ".join(" ".join(one) for one in self.cells[stage])
            raise UserError(
                f"{stage} {' '.join(cell)}: no such cell in params.yaml (grid). Cells of {stage}:\n  {known or 'none'}"
            )
        return self._jobs[stage, cell]

    def jobs(self) -> Iterator[Job]:
        """Every job, each after the jobs it reads from."""
        return iter(self._jobs.values())

    @cached_property
    def _jobs(self) -> dict[tuple[str, tuple[str, ...]], Job]:
        jobs: dict[tuple[str, tuple[str, ...]], Job] = {}
        made: dict[Path, str] = {}  # fingerprint of what produces a path
        for stage, cells in self.cells.items():
            for cell in cells:
                job = self._make(stage, cell, made)
                jobs[stage, cell] = job
                made |= dict.fromkeys(job.outputs.values(), job.fingerprint)
        return jobs

    def _make(self, stage: str, cell: tuple[str, ...], made: dict[Path, str]) -> Job:
        row = STAGES[stage]
        names = dict(zip(row.axes, cell, strict=True))
        fields = self.constants | names
        inputs = {role: Path(path.format(**fields)) for role, path in row.inputs.items()}
        for name in row.gathers:
            for one in self.cells[name]:
                values = self.constants | dict(zip(STAGES[name].axes, one, strict=True))
                for role, path in STAGES[name].outputs.items():
                    inputs[f"{name} {role} {'/'.join(one)}"] = Path(path.format(**values))
        settings = {key: self.lookup(key) for key in (read.format(**fields) for read in row.reads)}
        expects = {role: made[path] for role, path in inputs.items() if role not in UNMARKED}
        asked = {"stage": stage, "cell": cell, "settings": settings, "inputs": expects}
        return Job(
            stage=stage,
            cell=names,
            settings=settings,
            inputs=inputs,
            outputs={role: Path(path.format(**fields)) for role, path in row.outputs.items()},
            expects=expects,
            fingerprint=hashlib.sha256(canonical_json(asked).encode()).hexdigest(),
        )

    def lookup(self, key: str) -> Any:
        """The value at a dotted key of params.yaml."""
        value = self.values
        for step in key.split("."):
            value = value[step]
        return value


def code_files(stage: str, root: Path = Path()) -> list[str]:
    """Package files that `stage` depends on, folders spelled out, relative to the project."""
    files = []
    for entry in STAGES[stage].code:
        path = root / entry
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file.relative_to(root).as_posix() for file in found if file.is_file() and file.suffix != ".pyc"]
    return files


def code_version(stage: str) -> str:
    """A hash of the package files that `stage` depends on."""
    root = Path(__file__).parents[1]
    return hashlib.sha256("".join(sha256(root / file) for file in code_files(stage, root)).encode()).hexdigest()
