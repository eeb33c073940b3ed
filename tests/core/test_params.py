"""params.yaml: every preset is valid, mistakes are named with their path, and both engines read the same values."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from conftest import setting

from semcorr import params
from semcorr.errors import UserError
from semcorr.report import keys

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "workflow/presets").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_complete(path):
    """The model has no defaults: what it holds is exactly what the file says."""
    loaded = params.load(path)
    assert loaded.to_dict() == params.read_yaml(path)
    assert loaded.preset == path.stem


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_both_engines_read_the_same(path):
    """DVC reads YAML 1.2, Snakemake 1.1, in which 1e-4 is a text, yes a truth and 010 eight."""
    assert params.read_yaml(path) == yaml.safe_load(path.read_text())


def test_committed_params_are_the_demo():
    assert (ROOT / "params.yaml").read_text() == params.placed((ROOT / "workflow/presets/demo.yaml").read_text())


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.stem)
def test_editors_find_the_schema(path):
    """By the first line, whose path is relative to the file, as editors read it."""
    head, _, schema = path.read_text().splitlines()[0].partition("$schema=")
    assert head == "# yaml-language-server: "
    assert (path.parent / schema).resolve() == ROOT / params.SCHEMA


def test_schema_is_up_to_date():
    written = json.loads((ROOT / "workflow/schemas/params.schema.json").read_text())
    assert written == params.Params.model_json_schema(), "run: semcorr schema"


def test_every_key_has_a_description_and_valid_examples():
    schema = params.Params.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        for name, key in model["properties"].items():
            assert key["description"], name
            validator = jsonschema.Draft202012Validator(key | {"$defs": schema["$defs"]})
            assert key["examples"], name
            for example in key["examples"]:
                assert not [*validator.iter_errors(example)], f"{name}: {example}"


def _drop(*path):
    def change(values):
        for step in path[:-1]:
            values = values[step]
        del values[path[-1]]

    return change


MISTAKES = {
    "unknown key": (setting("foo", 1), "foo: unknown key; allowed: preset, grid, datasets"),
    "misspelt key": (
        setting("rules", "softargmax", "temprature", 1.0),
        "rules.softargmax.temprature: unknown key; allowed: readout, sampling, search, window, temperature",
    ),
    "missing key": (_drop("rules", "softargmax", "window"), "rules.softargmax.window: missing"),
    "missing section": (_drop("evaluate"), "evaluate: missing"),
    "even window": (
        setting("rules", "softargmax", "window", 4),
        "rules.softargmax.window: 4 is even; allowed: an odd",
    ),
    "zero temperature": (
        setting("rules", "softargmax", "temperature", 0),
        "rules.softargmax.temperature: input should be",
    ),
    "unknown readout": (
        setting("rules", "argmax", "readout", "max"),
        "rules.argmax.readout: 'max'; allowed: 'argmax'",
    ),
    "no readout": (
        _drop("rules", "argmax", "readout"),
        "rules.argmax.readout: missing; allowed: 'argmax', 'kernel_softargmax', 'softargmax'",
    ),
    "text for a number": (
        setting("tunings", "last1", "learning_rate", "1e-4"),
        "tunings.last1.learning_rate: input should be a valid number, got '1e-4'",
    ),
    "truth for a number": (setting("threads", True), "threads: input should be a valid integer, got True"),
    "hyphen in a name": (
        setting("rules", "soft-argmax", {"readout": "argmax", "sampling": "nearest"}),
        "rules.soft-argmax",
    ),
    "unknown rule": (
        setting("grid", "rules", ["argmax", "best"]),
        "grid.rules: 'best' is not defined; allowed: argmax",
    ),
    "twice": (setting("grid", "rules", ["argmax", "argmax"]), "grid.rules: a value is listed twice"),
    "nothing": (setting("grid", "datasets", []), "grid.datasets: value should have at least 1 item"),
    "weights": (
        setting("grid", "weights", ["frozen"]),
        "grid.weights: .* must hold grid.baselines and grid.tunings",
    ),
    "no training set": (
        setting("grid", "train", None),
        "grid.train: grid.tunings needs a dataset here; allowed: toy",
    ),
    "training is validation": (
        setting("grid", "validate", "toy_spair_trn"),
        "grid.validate: .* is also trained on",
    ),
    "training is part of validation": (
        setting("datasets", "toy_spair_val", "split", "trn"),
        "grid.validate: 'toy_spair_val' has images of 'toy_spair_trn', which is trained on; allowed: another split",
    ),
    "training is test": (
        setting("grid", "datasets", ["toy_willow", "toy_spair_trn"]),
        "grid.datasets: 'toy_spair_trn' is trained on and cannot be tested on",
    ),
    "missing trunk": (
        setting("grid", "trunks", ["toy_spair_trn"]),
        "grid.trunks: .* must hold what is trained, validated or tested on",
    ),
    "deeper than the trunk": (
        setting("tunings", "last1", "blocks", 2),
        "tunings.last1.blocks: 2 is more than trunk.blocks",
    ),
    "deeper than the layer": (
        lambda values: setting("trunk", "blocks", 3)(values),
        r"trunk.blocks: 3 is more than the 2 blocks up to backbones.dinov3_tiny.layer \(1\); allowed: at most 2",
    ),
    "neck of a vit": (
        setting("backbones", "dinov2_tiny", "layer", "neck"),
        "backbones.dinov2_tiny.layer: only family sam",
    ),
    "norm of sam": (
        setting("backbones", "sam_tiny", "norm", True),
        "backbones.sam_tiny.norm: SAM's encoder has no",
    ),
    "taken name": (
        lambda values: values["tunings"].update(trunk=values["tunings"]["last1"]),
        "tunings.trunk: this name is taken",
    ),
    "no reference": (
        _drop("evaluate", "references", "pfwillow"),
        "evaluate.references: 'pfwillow' is missing",
    ),
    "threshold": (
        setting("evaluate", "thresholds", [0.1, 2]),
        "evaluate.thresholds.1: input should be less than or equal to 1",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(smoke, case):
    change, message = MISTAKES[case]
    values = copy.deepcopy(smoke)
    change(values)
    with pytest.raises(UserError, match=rf"^params\.yaml: {message}"):
        params.validate(values, "params.yaml")


def test_every_mistake_is_reported(smoke):
    values = copy.deepcopy(smoke)
    values["foo"] = 1
    values["threads"] = 0
    with pytest.raises(UserError) as raised:
        params.validate(values, "params.yaml")
    assert len(str(raised.value).splitlines()) == 2


def _told(values: dict) -> list[str]:
    with pytest.raises(UserError) as raised:
        params.validate(values, "params.yaml")
    return [line.removeprefix("params.yaml: ").partition(":")[0] for line in str(raised.value).splitlines()]


def test_what_contradicts_is_reported_at_once(smoke):
    """Turning tuning off changes four other keys; and what is unknown here hides nothing there."""
    values = copy.deepcopy(smoke)
    values["grid"]["tunings"] = []
    assert _told(values) == ["grid.weights", "grid.train", "grid.validate", "grid.trunks"]
    values = copy.deepcopy(smoke)
    values["grid"] |= {"backbones": ["nope", "dinov3_tiny"], "tunings": ["nope", "last1"], "train": None}
    values["trunk"]["blocks"] = 3
    values["tunings"]["last1"]["blocks"] = 4
    keys = ["grid.backbones", "grid.tunings", "grid.weights", "grid.train", "tunings.last1.blocks", "trunk.blocks"]
    assert _told(values) == keys


@pytest.mark.parametrize("part", ["datasets", "backbones", "tunings"])
def test_an_entry_may_start_from_another(smoke, part):
    """The error says how, and what it says works in both engines, since presets have the anchors."""
    text = (ROOT / "workflow/presets/smoke.yaml").read_text()
    first, keys = next(iter(smoke[part].items()))
    kept = {key: keys[key] for key in ("format",) if key in keys}  # without it, other keys cannot be told
    values = copy.deepcopy(smoke)
    values[part]["mine"] = kept
    with pytest.raises(UserError) as raised:
        params.validate(values, "x")
    hint = f"mine: {{<<: *{first}, ...}}"
    missing = ", ".join(
        key for key in keys if key not in {*kept, "annotations", "categories", "part", "views", "head", "sides", "keep"}
    )  # which may be left out
    assert str(raised.value) == f"x: {part}.mine: missing {missing}; to start from another entry: {hint}"
    own = hint.replace("...", "limit: 1" if part == "datasets" else "seed: 5" if part == "tunings" else "layer: 1")
    lines = text.splitlines()
    end = next(at for at in range(lines.index(f"{part}:") + 1, len(lines)) if lines[at][:1].isalpha())
    text = "\n".join([*lines[:end], f"  {own}", *lines[end:]])
    read = params.read_text(text, Path("x"))  # by both engines' readers
    changed = yaml.safe_load(own.partition(", ")[2].removesuffix("}"))
    assert read[part]["mine"] == keys | changed
    assert params.validate(read, "x").unused == [f"{part}.mine"]


def test_what_no_grid_names_is_unused(smoke):
    assert params.validate(smoke, "x").unused == []
    values = copy.deepcopy(smoke)
    values["grid"] |= {"backbones": ["sam_tiny"], "rules": ["argmax"]}
    values["datasets"]["mine"] = values["datasets"]["toy_willow"]
    values["baselines"]["mine"] = {"kind": "random", "seed": 0}
    unused = ["datasets.mine", "backbones.dinov2_tiny", "backbones.dinov3_tiny", "baselines.mine", "rules.softargmax"]
    assert params.validate(values, "x").unused == unused


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2", "- 1\n- 2\n", ""])
def test_files_that_are_no_parameters(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml: (not valid YAML|expected a mapping)"):
        params.load(tmp_path / "params.yaml")


ODD = [
    None,
    0,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    [1],
    [None],
    ["a", 3],
    {},
    {"a": 1},
    {0: 1},
    True,
    10**400,
]


def _places(value: object, path: tuple = ()):
    """The path of every value in nested dicts and lists."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _places(part, (*path, key))


def test_whatever_stands_anywhere_is_valid_or_told(smoke):
    """Each value of params.yaml replaced by each odd one: no error but ours, and each line of it names the file."""
    told = 0
    for *path, key in filter(None, _places(smoke)):
        for odd in ODD:
            values = copy.deepcopy(smoke)
            place = values
            for step in path:
                place = place[step]
            place[key] = odd
            try:
                params.validate(values, "here")
            except UserError as error:
                told += all(line.startswith("here: ") for line in str(error).splitlines())
    assert told > 2000


def test_the_page_of_keys_is_the_schemas():
    """docs/keys.md is what `semcorr schema` writes, and has every key of every preset."""
    page = (ROOT / "docs/keys.md").read_text()
    assert page == keys.reference()
    named = {re.sub(r" \([^)]*\)|\[\]", "", line.split("`")[1]) for line in page.splitlines() if line.startswith("| `")}

    def leaves(values: object, path: str) -> Iterator[str]:
        for key, value in values.items() if isinstance(values, dict) else ():
            yield f"{path}{key}"
            yield from leaves(value, f"{path}{key}.")
        for value in values if isinstance(values, list) else ():
            yield from leaves(value, path)

    for preset in sorted((ROOT / "workflow/presets").glob("*.yaml")):
        for leaf in leaves(params.load(preset).to_dict(), ""):
            free = re.sub(r"^(datasets|backbones|fusions|baselines|tunings|rules)\.[^.]+", r"\1.<name>", leaf)
            free = re.sub(r"(\.images|overrides|references|sides)\..*", r"\1", free)
            assert free in named or "." not in free or free.endswith("<name>"), (preset.name, leaf)


def test_what_keeps_images_of_training_apart(smoke):
    """Split, categories, and the two parts of one seed and fraction; nothing else."""
    part = {"seed": 0, "fraction": 0.2, "keep": "part"}
    apart = [
        {"split": "val"},
        {"categories": ["car"]},
        {"part": part},
        {"sources": [{"kind": "path", "path": "elsewhere"}]},
    ]
    shared = [
        {},
        {"limit": 3},
        {"layout": "small"},
        {"categories": ["car", "dog"]},
        {"categories": None},
        {"part": part | {"keep": "rest"}},
        {"part": part | {"seed": 1}},
        {"part": part | {"fraction": 0.3}},
        {"part": None},
    ]
    for change in (*apart, *shared):
        values = json.loads(json.dumps(smoke))
        train = values["datasets"]["toy_spair_trn"]
        train |= {"categories": ["dog", "bird"], "part": part | {"keep": "rest"}}
        values["datasets"]["toy_spair_val"] = train | change
        if change in apart:
            params.validate(values, "x")
        else:
            with pytest.raises(UserError, match=r"grid\.validate: 'toy_spair_val' has images of 'toy_spair_trn'"):
                params.validate(values, "x")
