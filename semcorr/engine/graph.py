"""The stage graph: the jobs of an experiment, what each reads and writes, and the fingerprint of its outputs.

dvc.yaml and the Snakefile describe the same graph for each engine; a test checks that all three agree. The stages
themselves use the table here: paths, the parameters that affect a stage, the code and local files that it depends on,
and the fingerprint that every output carries.

A fingerprint is a hash of the stage's name and cell, the parameters it reads and its inputs' fingerprints. It contains
no time and no code, so it identifies *what was asked for*. An output whose fingerprint does not match params.yaml was
made with other parameters, and no stage reads it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import canonical_json
from semcorr.artifacts.provenance import Request
from semcorr.errors import UserError
from semcorr.params import Params, is_import_path, module_of, restrict

NETWORK = tuple(f"backbones.{{backbone}}.{key}" for key in ("family", "model", "overrides", "weights"))
SIZE, COMPUTE, PRECISION = (f"backbones.{{backbone}}.{key}" for key in ("image_size", "compute", "precision"))
LAYER = ("backbones.{backbone}.layer", "backbones.{backbone}.facet")
FEATURES = (*LAYER, "backbones.{backbone}.norm")
VIEWS = "backbones.{backbone}.views"
EVERY_LAYER = (
    *("backbones.{backbone}.norm", "backbones.{backbone}.debias"),
    *("grid.layers.facets", "grid.layers.rule", "rules.{layers_rule}"),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the graph; braces are filled with a cell's values.

    Attributes:
        axes: of its cells, by name, in command-line order -> the key of params.yaml that lists its values.
        keys: of params.yaml, that affect the result.
        inputs, outputs: paths by role. The first output carries the fingerprint.
        gathers: folders of inputs: everything that earlier jobs write into them.
        basis: what the result depends on besides these and the stage's own code; see `basis`.
    """

    axes: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    gathers: tuple[str, ...] = ()
    outputs: dict[str, str]
    basis: tuple[str, ...] = ()


STORE = "features/{backbone}/{weights}/{dataset}.h5"
TRUNK = "features/{backbone}/trunk/{dataset}.h5"
WEIGHTS = "data/weights/{backbone}/{weights}.safetensors"
RECORD = "data/weights/{backbone}/{weights}.json"
FROZEN = {role: path.replace("{weights}", "frozen") for role, path in (("tensors", WEIGHTS), ("record", RECORD))}
MATCHES = "matches/{backbone}/{weights}/{dataset}/{rule}.parquet"
ABSENT = "matches/{backbone}/{weights}/{dataset}/{rule}.absent.parquet"
CELL = "metrics/{preset}/cells/{backbone}/{weights}/{dataset}/{rule}.json"
PAIR_SCORES = "metrics/{preset}/cells/{backbone}/{weights}/{dataset}/{rule}.parquet"
GALLERY = "metrics/{preset}/galleries/{backbone}/{weights}/{dataset}.json"
BASIS = Path("data/basis")
FAMILY = "backbones/{backbone}"
FUSIONS = "grid.fusions"
ROWS = f"grid.backbones, {FUSIONS}"  # what is matched, from stores alone
STORE_AXES = {"backbone": ROWS, "weights": "grid.weights", "dataset": "grid.datasets"}

STAGES: dict[str, Stage] = {
    "validate": Stage(outputs={"basis": BASIS.as_posix()}),
    "fetch": Stage(
        axes={"dataset": "datasets"},
        keys=("datasets.{dataset}",),
        outputs={
            "images": "data/{dataset}/images.parquet",
            "pairs": "data/{dataset}/pairs.parquet",
            "folder": "data/{dataset}/images",
        },
        basis=("datasets/{dataset}",),
    ),
    "weights": Stage(
        axes={"backbone": "grid.backbones", "weights": "grid.baselines"},
        keys=(*NETWORK, "baselines.{weights}"),
        outputs={"record": RECORD, "tensors": WEIGHTS},
        basis=(FAMILY, "weights/{backbone}"),
    ),
    "extract": Stage(
        axes={"backbone": "grid.backbones", "weights": "grid.baselines", "dataset": "grid.datasets"},
        keys=(*NETWORK, SIZE, *FEATURES, VIEWS, "backbones.{backbone}.debias", COMPUTE, PRECISION, "threads"),
        inputs={"tensors": WEIGHTS, "record": RECORD, "images": "data/{dataset}/images.parquet"},
        outputs={"store": STORE},
        basis=(FAMILY,),
    ),
    "trunk": Stage(
        axes={"backbone": "grid.backbones", "dataset": "grid.trunks"},
        keys=(*NETWORK, SIZE, *LAYER, COMPUTE, "trunk", "grid.train", "threads"),
        inputs={**FROZEN, "images": "data/{dataset}/images.parquet"},
        outputs={"store": TRUNK},
        basis=(FAMILY,),
    ),
    "finetune": Stage(
        axes={"backbone": "grid.backbones", "tuning": "grid.tunings"},
        keys=(*NETWORK, SIZE, *FEATURES, COMPUTE, PRECISION, "trunk", "tunings.{tuning}", "hold_outs", "threads"),
        inputs={
            **FROZEN,
            "train": "features/{backbone}/trunk/{train}.h5",
            "train_pairs": "data/{train}/pairs.parquet",
            "train_images": "data/{train}/images.parquet",
            "validate": "features/{backbone}/trunk/{validate}.h5",
            "validate_pairs": "data/{validate}/pairs.parquet",
            "validate_images": "data/{validate}/images.parquet",
        },
        outputs={
            "tensors": "checkpoints/{backbone}/{tuning}/best.safetensors",
            "curve": "checkpoints/{backbone}/{tuning}/curve.csv",
            "steps": "checkpoints/{backbone}/{tuning}/steps.csv",
        },
        basis=(FAMILY, "tunings/{tuning}"),
    ),
    "adapt": Stage(
        axes={"backbone": "grid.backbones", "tuning": "grid.tunings", "dataset": "grid.datasets"},
        keys=(*NETWORK, SIZE, *FEATURES, VIEWS, COMPUTE, PRECISION, "trunk", "threads"),
        inputs={
            "frozen": FROZEN["tensors"],
            "record": FROZEN["record"],
            "tuned": "checkpoints/{backbone}/{tuning}/best.safetensors",
            "trunk": TRUNK,
        },
        outputs={"store": "features/{backbone}/{tuning}/{dataset}.h5"},
        basis=(FAMILY,),
    ),
    "fuse": Stage(
        axes={"fusion": FUSIONS, "weights": "grid.weights", "dataset": "grid.datasets"},
        keys=("fusions.{fusion}",),
        inputs={role: f"features/{{{role}}}/{{weights}}/{{dataset}}.h5" for role in ("a", "b")},
        outputs={"store": "features/{fusion}/{weights}/{dataset}.h5"},
    ),
    "match": Stage(
        axes={**STORE_AXES, "rule": "grid.rules"},
        keys=("rules.{rule}", "threads"),
        inputs={"store": STORE, "pairs": "data/{dataset}/pairs.parquet", "images": "data/{dataset}/images.parquet"},
        outputs={"matches": MATCHES, "absent": ABSENT},
        basis=("rules/{rule}",),
    ),
    "evaluate": Stage(
        axes={**STORE_AXES, "rule": "grid.rules"},
        keys=("evaluate", "hold_outs", "datasets.{dataset}.format"),
        inputs={"matches": MATCHES, "absent": ABSENT, "images": "data/{dataset}/images.parquet"},
        outputs={"cell": CELL, "pairs": PAIR_SCORES},
    ),
    "draw": Stage(
        axes=STORE_AXES,
        keys=("grid.rules", "evaluate", "datasets.{dataset}.format"),
        inputs={"store": STORE, "images": "data/{dataset}/images.parquet"},
        gathers=(
            "matches/{backbone}/{weights}/{dataset}",
            "metrics/{preset}/cells/{first_backbone}/{first_weights}/{dataset}",
        ),
        outputs={"gallery": GALLERY},
    ),
    "layers": Stage(
        axes={"backbone": "grid.layers.backbones", "dataset": "grid.layers.datasets"},
        keys=(*NETWORK, SIZE, *EVERY_LAYER, COMPUTE, PRECISION, "evaluate", "datasets.{dataset}.format", "threads"),
        inputs={**FROZEN, "images": "data/{dataset}/images.parquet", "pairs": "data/{dataset}/pairs.parquet"},
        outputs={"curve": "metrics/{preset}/cells/{backbone}/layers/{dataset}.json"},
        basis=(FAMILY, "rules/{layers_rule}"),
    ),
    "report": Stage(
        keys=("grid", "evaluate"),
        gathers=("metrics/{preset}/cells", "metrics/{preset}/galleries"),
        outputs={
            "html": "metrics/{preset}/report.html",
            "summary": "metrics/{preset}/summary.json",
            "markdown": "metrics/{preset}/summary.md",
            "latex": "metrics/{preset}/summary.tex",
            "curves": "metrics/{preset}/curves.csv",
            "categories": "metrics/{preset}/categories.csv",
        },
    ),
    "headline": Stage(
        keys=("grid", "evaluate"),
        inputs={"page": "metrics/{preset}/report.html"},
        gathers=("metrics/{preset}/cells",),
        outputs={"headline": "metrics/{preset}/headline", "csv": "metrics/{preset}/summary.csv"},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Job(Request):
    """One stage on one cell.

    Attributes:
        name: as in dvc.yaml, where fusions have stages of their own, and are named by their place in the grid.
        cell: value of each axis.
        inputs, outputs: paths by role; those that a stage gathers as "<stage> <role> <cell>".
        basis: files below `data/basis` that the job depends on -> the modules that they cover.
        reads: everything that engines see the job read: its inputs, gathered ones as a folder, and its basis.
        expects: role of an input -> the fingerprint it must carry.
    """

    name: str
    cell: dict[str, str]
    inputs: dict[str, Path]
    outputs: dict[str, Path]
    basis: dict[Path, list[str]]
    reads: list[Path]
    expects: dict[str, str]

    @property
    def title(self) -> str:
        """Its name in messages."""
        return " ".join([self.stage, *self.cell.values()])

    @property
    def command(self) -> str:
        """The command line that both engines run."""
        return " ".join(["python -m semcorr", self.stage, *self.cell.values()])


class Graph:
    """All jobs of one experiment."""

    def __init__(self, params: Params):
        self.params = params
        self.values = params.to_dict()
        for name, backbone in self.values["backbones"].items():
            backbone.setdefault("views", params.backbones[name].views)
        grid = self.values["grid"]
        self.constants = {key: str(grid[key]) for key in ("train", "validate")} | {"preset": params.preset}
        self.constants["layers_rule"] = str(params.grid.layers.rule)
        for axis, key in (("backbone", "backbones"), ("weights", "weights")):
            self.constants[f"first_{axis}"] = grid[key][0] if grid[key] else ""
        self.cells: dict[str, list[tuple[str, ...]]] = {
            stage: list(product(*[names_on(self.values, key) for key in row.axes.values()]))
            for stage, row in STAGES.items()
        }

    def job(self, stage: str, *cell: str) -> Job:
        """The job of `stage` on `cell`, with values in the order of the stage's axes.

        Raises:
            UserError: the experiment has no such cell.
        """
        if cell not in self.cells[stage]:
            known = "\n  ".join(" ".join(cell) for cell in self.cells[stage])
            raise UserError(
                f"{stage} {' '.join(cell)}: no such cell in params.yaml (grid). Cells of {stage}:\n  {known or 'none'}"
            )
        return self._jobs[stage, cell]

    def view(self, job: Job) -> Params:
        """The parameters that a job reads, with their usual types; any other key raises AttributeError.

        Also `preset`, which is in its outputs' paths, and `runtime`, which affects no result.
        """
        if job.stage == "validate":
            return self.params
        return restrict(self.params, [key.split(".") for key in (*job.settings, "preset", "runtime")])

    def jobs(self) -> Iterator[Job]:
        """Every job, in order of dependency."""
        return iter(self._jobs.values())

    @cached_property
    def _jobs(self) -> dict[tuple[str, tuple[str, ...]], Job]:
        jobs: dict[tuple[str, tuple[str, ...]], Job] = {}
        fingerprints: dict[Path, str] = {}  # of the job that produces a path
        below: dict[Path, dict[str, Path]] = {}  # what jobs write below a folder, by role
        for stage, cells in self.cells.items():
            for cell in cells:
                job = self._make(stage, cell, fingerprints, below)
                jobs[stage, cell] = job
                for role, path in job.outputs.items():
                    fingerprints[path] = job.fingerprint
                    for folder in path.parents:
                        below.setdefault(folder, {})[f"{stage} {role} {'/'.join(cell)}"] = path
        return jobs

    def _make(
        self, stage: str, cell: tuple[str, ...], fingerprints: dict[Path, str], below: dict[Path, dict[str, Path]]
    ) -> Job:
        row = STAGES[stage]
        names = dict(zip(row.axes, cell, strict=True))
        fields = self.constants | names
        if fusion := self.params.joined.get(names.get("fusion", "")):
            fields |= {"a": fusion.a, "b": fusion.b}
        inputs = {role: Path(path.format(**fields)) for role, path in row.inputs.items()}
        reads, folders = list(inputs.values()), [Path(folder.format(**fields)) for folder in row.gathers]
        for folder in folders:
            inputs |= below.get(folder, {})
        covered = [f"code/{stage}", *(path.format(**fields) for path in row.basis)] if stage != "validate" else []
        basis = {BASIS / path: self._modules(path) for path in covered}
        settings = {key: self.lookup(key) for key in (key.format(**fields) for key in row.keys)}
        expects = {role: fingerprints[path] for role, path in inputs.items()}
        asked = {"stage": stage, "cell": cell, "settings": settings, "inputs": expects}
        return Job(
            name=self._name(stage, names),
            stage=stage,
            cell=names,
            settings=settings,
            inputs=inputs,
            outputs={role: Path(path.format(**fields)) for role, path in row.outputs.items()},
            basis=basis,
            reads=[*reads, *folders, *basis],
            expects=expects,
            fingerprint=hashlib.sha256(canonical_json(asked).encode()).hexdigest(),
        )

    def _name(self, stage: str, cell: dict[str, str]) -> str:
        """A job's name in dvc.yaml."""
        places = {name: f"fusion{place}" for place, name in enumerate(self.params.joined)}
        first, *others = cell.values() or [""]
        if stage != "fuse" and first in places and "weights" in cell:
            stage = f"{stage}_fused"
        return "@".join(filter(None, [stage, "-".join([places.get(first, first), *others])]))

    def _modules(self, basis: str) -> list[str]:
        """The modules that a file of the basis covers: a stage's own, or those imported by name."""
        kind, _, name = basis.partition("/")
        match kind:
            case "code":
                return [f"semcorr.stages.{name}"]
            case "rules":
                readout = self.params.rules[name].readout
                return [module_of(readout) if is_import_path(readout) else f"semcorr.readouts.{readout}"]
            case "tunings":
                tuning = self.params.tunings[name]
                return [
                    f"semcorr.networks.losses.{tuning.loss.name}",
                    *(["semcorr.networks.losses.end_point"] if tuning.end_point else []),
                ]
            case "backbones":
                family = self.params.backbones[name].family
                if is_import_path(family):
                    return ["semcorr.networks.backbones.own", module_of(family)]
                return [f"semcorr.networks.backbones.{family}"]
            case "datasets":
                return [f"semcorr.datasets.{self.params.datasets[name].format}"]
        return []

    def lookup(self, key: str) -> Any:
        """The value at a dotted key of params.yaml."""
        return _at(self.values, key)


def names_on(values: dict[str, Any], key: str) -> list[str]:
    """The values of an axis in params.yaml; none if its key is left out."""
    if key == ROWS:
        return [*names_on(values, "grid.backbones"), *names_on(values, FUSIONS)]
    try:
        return [one["name"] if isinstance(one, dict) else one for one in _at(values, key)]
    except KeyError:
        return []


def _at(values: dict[str, Any], key: str) -> Any:
    value = values
    for step in key.split("."):
        value = value[step]
    return value
