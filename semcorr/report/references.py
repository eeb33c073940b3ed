"""Hold a finished experiment against reference results: our own, and values of the literature.

Our own must come out again, to within a tolerance. A value of the literature is shown beside the nearest cell, with
every difference of protocol, since each of them alone can move PCK by several points. The nearest cell is the one that
agrees in what matters most, in the order of `Key`. Both kinds of results are in FILE.
"""

import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, ValidationError

from semcorr import pck
from semcorr.artifacts.provenance import expect, read_result
from semcorr.engine import shipped
from semcorr.engine.graph import Graph
from semcorr.errors import UserError
from semcorr.networks.published import PUBLISHED
from semcorr.params import PRESETS, BackboneSpec, DatasetSpec, Model, Params, Positive, explain, leaves, load, read_yaml
from semcorr.report.tables import AXES, headline_row

FILE = Path("workflow/references.yaml")
ELSEWHERE = ("runtime.", "grid.")  # no result depends on the first; cells that the second lacks are counted
# What decides whether two numbers compare; the more a difference matters, the earlier it stands.
Key = Literal[
    "data",
    "split",
    "pairs",
    "network",
    "weights",
    "tuned blocks",
    "readout",
    "loss",
    "negatives",
    "loss temperature",
    "sigma in cells",
    "learning rate",
    "weight decay",
    "image size",
    "layer",
    "facet",
    "norm",
    "debiased",
    "reference",
    "window",
    "temperature",
    "sampling",
]
KEYS: tuple[Key, ...] = get_args(Key)
LOSS = {"name": "loss", "temperature": "loss temperature", "sigma_cells": "sigma in cells", "negatives": "negatives"}
OFFICIAL_TAGS = ("lvd142m", "lvd1689m")  # of the data that DINOv2 and DINOv3 were trained on
Stated = str | int | float | bool | None
Threshold = Annotated[str, StringConstraints(pattern=r"^PCK@0\.\d+$")]
LENGTHS = {"bbox": "object's box", "bbox_kp": "box around the keypoints", "image": "image"}
WIDTH = 110  # of a line


class Measured(Model):
    """Our own results of a preset."""

    preset: str = Field(description="name of the preset")
    source: str = Field(description="where the numbers were published")
    cells: Annotated[dict[str, dict[str, float]], Field(min_length=1)] = Field(
        description="cell -> its row of `dvc metrics show`, in percent"
    )


class Literature(Model):
    """A result of the literature."""

    what: str = Field(description="network and method")
    source: str = Field(description="where the values are from")
    format: str = Field(description="of the dataset")
    family: str = Field(description="of the network: part of its model's name, or sam")
    besides: str | None = Field(description="what no cell has")
    protocol: dict[Key, Stated] = Field(description="how it was measured; null where that is not stated")
    values: dict[Literal["keypoint", "image", "category"], dict[Threshold, float]] = Field(
        description="average -> PCK in percent, by threshold"
    )


class References(Model):
    """All reference results."""

    tolerance: Positive = Field(description="points of PCK by which our own results may move")
    measured: list[Measured] = Field(description="our own results")
    literature: list[Literature] = Field(description="results of the literature")


def read(path: Path) -> References:
    """Read reference results.

    Raises:
        UserError: the file is missing, or a value is not as it should be.
    """
    values = read_yaml(path)
    try:
        return References.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}") from None


def find(path: Path) -> Path:
    """One of the project's own files; where the project has none, the one that semcorr ships with."""
    return path if path.exists() else shipped.folder() / path


def verify(params: Params, references: References, *, drawn: bool = True) -> tuple[str, bool]:
    """What to say of the current experiment, and whether none of our own references is missed.

    Args:
        params: of the experiment.
        references: our own results, and those of the literature.
        drawn: whether to show the literature beside results on drawn images too.

    Raises:
        UserError: the experiment is not finished.
    """
    cells = _cells(params)
    lines, passed = _own(cells, params, references)
    kinds = {name: params.datasets[name.split("/")[2]].sources[0].kind for name in cells}
    real = {name: cell for name, cell in cells.items() if drawn or kinds[name] != "toy"}
    return "\n".join([*_literature(real, params, references), *lines]), passed


def _cells(params: Params) -> dict[str, dict[str, Any]]:
    """The current results by cell."""
    experiment = Graph(params)
    cells = {}
    for cell in experiment.cells["evaluate"]:
        job = experiment.job("evaluate", *cell)
        path = job.outputs["cell"]
        if not path.exists():
            raise UserError(f"{path}: not made yet. Run: dvc repro (or snakemake --cores all)")
        expect(path, job.fingerprint)
        cells["/".join(cell)] = read_result(path)
    return cells


def _own(cells: dict[str, dict[str, Any]], params: Params, references: References) -> tuple[list[str], bool]:
    """A table of our own results under the current preset, with a conclusion; and whether none is outside."""
    measured = [known for known in references.measured if known.preset == params.preset]
    if not measured:
        presets = ", ".join(sorted({known.preset for known in references.measured})) or "no preset"
        return [f"No results of our own are known for preset {params.preset}; they are for: {presets}"], True
    key = pck.threshold_key(params.evaluate.headline)
    rows = {name: row for known in measured for name, row in known.cells.items()}
    wide = max(map(len, rows))
    lines = [
        f"Preset {params.preset}, in percent: {key} of the reference and here; then whether all its values agree.",
        f"Reference: {'; '.join(known.source for known in measured)}",
        *(f"Changed since: {change}" for change in _changes(params)),
        "",
        f"{'cell':<{wide}}  reference     here",
    ]
    held = outside = 0
    for name, theirs in rows.items():
        line = f"{name.replace('/', ' '):<{wide}}"
        if name not in cells:
            lines.append(f"{line}  not in the grid of params.yaml")
            continue
        ours = {at: round(100 * value, 1) for at, value in headline_row(cells[name], key).items()}
        verdict = _verdict(ours, theirs, references.tolerance)
        lines.append(f"{line}  {_shown(theirs.get(key.lower())):>9} {_shown(ours[key.lower()]):>8}   {verdict}")
        held, outside = held + 1, outside + verdict.startswith("outside")
    conclusion = f"{held - outside} of {held} cells within {references.tolerance:g} points of the reference"
    if held < len(rows):
        conclusion += f"; {len(rows) - held} more not in the grid of params.yaml"
    return [*lines, "", conclusion], not outside


def _verdict(ours: dict[str, float], theirs: dict[str, float], tolerance: float) -> str:
    """How far a cell's values, in percent, are from those of the reference, to the digit that is shown."""
    gaps = {key: abs(ours.get(key, float("inf")) - round(value, 1)) for key, value in theirs.items()}
    far = [key for key, gap in gaps.items() if round(gap, 6) > tolerance]
    if not any(gaps.values()):
        return "equal"
    shown = far or [max(gaps, key=lambda key: gaps[key])]
    numbers = ", ".join(f"{key} {_shown(theirs[key])}, here {_shown(ours.get(key))}" for key in shown)
    return f"{'outside' if far else f'within {tolerance:g} points'}: {numbers}"


def _shown(value: float | None) -> str:
    """A value in percent; a word if there is none."""
    return "none" if value is None else f"{value:.1f}"


def _changes(params: Params) -> list[str]:
    """Each value of params.yaml that is another in the preset of that name, where a result may depend on it."""
    path = find(PRESETS / f"{params.preset}.yaml")
    if not path.exists():
        return []
    theirs, ours = leaves(load(path).to_dict()), leaves(params.to_dict())
    keys = [key for key in {**theirs, **ours} if not key.startswith(ELSEWHERE) and not _is_address(key)]
    return [
        f"{key} is {ours.get(key, 'left out')} in params.yaml, {theirs.get(key, 'left out')} in {path}"
        for key in keys
        if ours.get(key, ...) != theirs.get(key, ...)
    ]


def _is_address(key: str) -> bool:
    """Whether a key says where a dataset is; those of drawn images say which it is."""
    words = key.split(".")
    return words[0] == "datasets" and "sources" in words and not {"seed", "images"} & set(words)


def _literature(cells: dict[str, dict[str, Any]], params: Params, references: References) -> list[str]:
    """Each value of the literature on a format and a family of networks that the experiment has."""
    parts = [lines for known in references.literature if (lines := _beside(known, cells, params))]
    if not parts:
        return []
    head = (
        "Literature, beside the same average of the nearest cell. Differences of protocol alone can be worth 10 points."
    )
    return [head, "", *(line for lines in parts for line in [*lines, ""])]


def _beside(known: Literature, cells: dict[str, dict[str, Any]], params: Params) -> list[str]:
    """One result of the literature, the nearest cell, and how they differ; nothing if no cell concerns it."""
    protocols = {name: _protocol(name, known, params) for name in cells if _concerns(known, name, params)}
    if not protocols:
        return []
    name = min(
        protocols, key=lambda name: [_differ(protocols[name], known, key) for key in KEYS]
    )  # the first of equals
    ours = protocols[name]
    scores = cells[name]["references"][ours["reference"]]
    values, differences = [], [f"there also {known.besides}"] if known.besides else []
    for average, row in known.values.items():
        for threshold, value in row.items():
            nearest = _nearest(threshold, params.evaluate.thresholds)
            mean = 100 * scores[f"overall_{average}"][nearest]["mean"]
            values.append(f"{threshold} per {average} {value:.1f}, here {mean:.1f}")
            if nearest != threshold:
                values[-1] += f" ({nearest})"
                differences.append(f"{nearest} instead of {threshold}")
    differences += [_words(key, ours[key], known.protocol[key]) for key in KEYS if _differ(ours, known, key)]
    unstated = [key for key, value in known.protocol.items() if value is None]
    lines = [
        f"{known.what} ({known.source})",
        f"  {'; '.join(values)}",
        f"  here: {name.replace('/', ' ')}",
        f"  different here: {'; '.join(differences) or 'nothing that is stated'}",
    ]
    lines += [f"  not stated there: {', '.join(unstated)}"] if unstated else []
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ")]


def _concerns(known: Literature, name: str, params: Params) -> bool:
    """Whether a cell has the format and the family of networks of a result of the literature."""
    cell = dict(zip(AXES, name.split("/"), strict=True))
    spec, dataset = params.backbones.get(cell["backbone"]), params.datasets[cell["dataset"]]
    if spec is None:  # a fusion
        return False
    family = known.family in (*spec.model.split("_"), spec.family)
    return family and dataset.format == known.format


def _protocol(name: str, known: Literature, params: Params) -> dict[str, Any]:
    """How a cell is measured; under the reference of a result of the literature, where the cell has it."""
    cell = dict(zip(AXES, name.split("/"), strict=True))
    spec, dataset = params.backbones[cell["backbone"]], params.datasets[cell["dataset"]]
    baseline, tuning = params.baselines.get(cell["weights"]), params.tunings.get(cell["weights"])
    lengths: list[str] = [*params.evaluate.references[dataset.format]]
    wanted = known.protocol.get("reference")
    protocol = {
        "data": _data(dataset),
        "split": getattr(dataset, "split", "all"),
        "pairs": _chosen(dataset),
        "network": f"{spec.model} with {spec.overrides}" if spec.overrides else spec.model,
        "weights": "random" if baseline and baseline.kind == "random" else _weights(spec),
        "tuned blocks": tuning.blocks if tuning else 0,
        "image size": spec.image_size,
        "layer": spec.layer if not isinstance(spec.layer, list) else " and ".join(map(str, spec.layer)),
        "facet": spec.facet,
        "norm": spec.norm,
        "debiased": spec.debias is not None,
        "reference": wanted if wanted in lengths else lengths[0],
        **params.rules[cell["rule"]].model_dump(),  # readout, sampling, window, temperature
    }
    if tuning:
        loss = tuning.loss.model_dump()
        protocol |= {LOSS[key]: value for key, value in loss.items()}
        protocol |= {"learning rate": tuning.learning_rate, "weight decay": tuning.weight_decay}
    return protocol


def _data(dataset: DatasetSpec) -> str:
    """Which images a dataset holds, as far as that is verified."""
    if dataset.expect != "any":
        return dataset.expect
    return "drawn images" if dataset.sources[0].kind == "toy" else f"images of your own in the format {dataset.format}"


def _chosen(dataset: DatasetSpec) -> str:
    """Which of its pairs are used."""
    values = dataset.model_dump()
    parts = [f"the first {dataset.limit}"] if dataset.limit else []
    parts += ["the small list"] if values.get("layout") == "small" else []
    parts += [f"categories {', '.join(dataset.categories)}"] if dataset.categories else []
    parts += ["a list"] if values.get("pairs") else []
    parts += [", ".join(values["subsets"])] if values.get("subsets") else []
    return " of ".join(parts) or "all"


def _weights(spec: BackboneSpec) -> str:
    """Whose tensors a network has."""
    weights = spec.weights
    if weights.kind == "package":
        return f"of the package {weights.package}"
    if weights.kind == "timm":
        return "official" if weights.tag in OFFICIAL_TAGS else f"{weights.tag} of timm's hub"
    published = [net.spec.weights for net in PUBLISHED.values()]
    official = {known.sha256 for known in published if known.kind == "url"}
    if weights.kind in ("url", "file") and weights.sha256 in official:
        return "official"
    return {"url": "of another address", "file": "of a file", "random": "random"}[weights.kind]


def _differ(ours: dict[str, Any], known: Literature, key: Key) -> bool:
    """Whether a cell is known to be measured otherwise in one respect."""
    theirs = known.protocol.get(key)
    return theirs is not None and key in ours and ours[key] != theirs


def _nearest(threshold: str, thresholds: list[float]) -> str:
    """The name of the threshold that is nearest to a named one."""
    value = float(threshold.removeprefix("PCK@"))
    return pck.threshold_key(min(thresholds, key=lambda known: abs(known - value)))


def _words(key: Key, ours: Any, theirs: Any) -> str:
    """A difference of protocol in words."""
    match key:
        case "data" | "network":
            return f"{ours} instead of {theirs}"
        case "tuned blocks":
            return f"{ours or 'no'} tuned blocks instead of {theirs or 'none'}"
        case "norm":
            before, after = "before the final norm", "after the final norm"
            return f"features {after} instead of {before}" if ours else f"features {before} instead of {after}"
        case "reference":
            return f"thresholds relative to the {LENGTHS[ours]} instead of the {LENGTHS[theirs]}"
        case "debiased":
            return "features debiased" if ours else "features not debiased"
    return f"{key} {ours} instead of {theirs}"
