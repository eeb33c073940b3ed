"""params.yaml: every preset is valid, mistakes are named with their path, and both engines read the same values."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from conftest import setting

from semcorr import params
from semcorr.errors import UserError

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
    assert (ROOT / "params.yaml").read_text() == (ROOT / "workflow/presets/demo.yaml").read_text()


def test_schema_is_up_to_date():
    written = json.loads((ROOT / "workflow/schemas/params.schema.json").read_text())
    assert written == params.Params.model_json_schema(), "run: semcorr schema"


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
        "rules.softargmax.temprature: unknown key; allowed: readout, sampling, window, temperature",
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
        "rules.argmax.readout: missing; allowed: 'argmax', 'softargmax'",
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
