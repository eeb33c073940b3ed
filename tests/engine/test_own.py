"""Readouts and networks of one's own, by import path: validated, run in both engines, and re-run where they change."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run_stages, setting
from PIL import Image as PillowImage

from semcorr import cli, match_images, params, plugins
from semcorr.engine import code, graph
from semcorr.engine.memory import Memory
from semcorr.errors import UserError
from semcorr.networks.backbones import build
from semcorr.readouts import readout

NETWORK = '''
from torch import nn

from .shared import WIDTH


class Patches(nn.Module):
    """One convolution."""

    stride = 14

    def __init__(self, width: int = WIDTH, depth: int = 1):
        super().__init__()
        self.width = [width] * depth
        self.stride = [14] * depth
        self.project = nn.ModuleList([nn.Conv2d(3, width, 14, 14) for _ in range(depth)])

    def forward(self, images):
        return [project(images) for project in self.project]
'''
RULE = '''
from typing import Annotated

import torch
from pydantic import Field


def best(maps, power: Annotated[float, Field(gt=0)] = 1.0):
    """The most similar cell, whatever the power."""
    index = maps.pow(power).flatten(1).argmax(dim=1) if power != 1 else maps.flatten(1).argmax(dim=1)
    return torch.stack([index % maps.shape[2], index // maps.shape[2]], dim=1).to(maps.dtype)


def broken(maps):
    return maps


def not_finite(maps):
    return torch.full((len(maps), 2), torch.nan)


def arrays(maps):
    return torch.zeros(len(maps), 2).numpy()


def fails(maps):
    return {}["x"]


def squared(maps):
    return best(maps**2)
'''
DATA = "toy_spair_val"


def _names(seed: str) -> tuple[str, str]:
    """Names of a package and a module that no other test has imported."""
    return f"mine_{seed}", f"elsewhere_{seed}"


def _write(root, outside, package: str, module: str) -> None:
    (root / package).mkdir()
    (root / package / "__init__.py").write_text('"""Mine."""\n')
    (root / package / "shared.py").write_text("WIDTH = 24\n")
    (root / package / "features.py").write_text(NETWORK)
    outside.mkdir()
    (outside / f"{module}.py").write_text(RULE)


def _use(values: dict, package: str, module: str) -> None:
    """One network and one readout of one's own, and argmax beside it."""
    own = values["backbones"]["dinov2_tiny"] | {
        "family": f"{package}.features:Patches",
        "model": "patches",
        "overrides": {"depth": 2},
        "layer": 1,
        "norm": False,
        "views": ["plain"],
    }
    values["backbones"]["own"] = own
    values["rules"]["best"] = {"readout": f"{module}:best", "sampling": "bilinear", "power": 1.0}
    values["grid"] |= {"backbones": ["own"], "tunings": [], "weights": ["frozen"], "datasets": [DATA], "trunks": []}
    values["grid"] |= {"train": None, "validate": None, "rules": ["best", "argmax"]}
    values["grid"]["layers"] = {"backbones": ["own"], "datasets": [DATA], "facets": ["token"], "rule": "best"}


@pytest.fixture
def project(smoke, tmp_path, monkeypatch, request):
    """A folder with a package of one's own, a module elsewhere that Python finds, and its values."""
    package, module = _names(f"unit{abs(hash(request.node.name))}")
    root, outside = tmp_path / "project", tmp_path / "outside"
    root.mkdir()
    _write(root, outside, package, module)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(outside))
    values = json.loads(json.dumps(smoke))
    _use(values, package, module)
    (root / "params.yaml").write_text(json.dumps(values))
    yield root, outside, package, module, values
    for name in [name for name in sys.modules if name.partition(".")[0] in (package, module)]:
        del sys.modules[name]


def test_the_stages_and_the_api_use_both(project):
    """The readout's answers are those of argmax; the features are the convolution of the image; so are own images'."""
    _, _, _, _, values = project
    plan = run_stages(values, "validate", "fetch", "weights", "extract", "match", "evaluate", "layers")
    rules = ("best", "argmax")
    cells = [plan.job("evaluate", "own", "frozen", DATA, rule).outputs["cell"].read_text() for rule in rules]
    one, two = (json.loads(text)["overall_keypoint"] for text in cells)
    assert one == two
    network = build(plan.params.backbones["own"])
    assert network.widths == [24, 24]
    image = PillowImage.effect_noise((70, 56), 80).convert("RGB")
    pixels, _ = network.preprocess(image, 70)
    found = network.features(pixels[None], plan.params.backbones["own"])
    expected = torch.nn.functional.conv2d(
        pixels[None], network.net.project[1].weight, network.net.project[1].bias, stride=14
    )
    torch.testing.assert_close(found, expected)
    matches = [match_images(image, image, [[20, 20]], backbone="own", rule=rule).target_points for rule in rules]
    np.testing.assert_array_equal(*matches)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("rules", "best", "power", -1.0), r"rules\.best: .*:best: power: .*greater than 0"),
        (setting("rules", "best", "power", "1"), r"rules\.best: .*:best: power: .*valid number"),
        (setting("rules", "best", "more", 1), r"rules\.best: .*:best: more: "),
        (setting("rules", "best", "readout", "os:system"), r"is of Python's own library"),
        (setting("rules", "best", "readout", "nowhere.at_all:x"), r"nowhere\.at_all: no module nowhere"),
        (setting("rules", "best", "readout", "../x:y"), r"rules\.best\.readout: '\.\./x:y'; allowed: text matching"),
        (setting("backbones", "own", "overrides", {"depth": "two"}), r"backbones\.own: .*:Patches: depth: "),
        (setting("backbones", "own", "overrides", {"size": 2}), r"backbones\.own: .*:Patches: size: "),
        (setting("backbones", "own", "layer", 2), r"backbones\.own\.layer: 2 does not exist"),
        (setting("backbones", "own", "facet", "key"), r"backbones\.own\.facet: key cannot be read"),
        (setting("backbones", "own", "family", "json:loads"), r"is of Python's own library"),
    ],
)
def test_mistakes_are_told_before_anything_runs(project, change, message):
    _, _, _, _, values = project
    change(values)
    with pytest.raises(UserError, match=message):
        run_stages(values, "validate")


def test_answers_that_are_none_are_refused(project):
    _, _, _, module, values = project
    maps = torch.rand(3, 4, 5)
    for name, message in (
        ("broken", r":broken: returns \(3, 4, 5\); allowed: a tensor \(3, 2\)"),
        ("not_finite", "not finite"),
        ("arrays", ":arrays: returns ndarray; allowed: a tensor"),
        ("fails", r":fails: fails \(KeyError: 'x'\)"),
    ):
        values["rules"]["best"] = {"readout": f"{module}:{name}", "sampling": "bilinear"}
        rule = params.validate(values, "x").rules["best"]
        with pytest.raises(UserError, match=message):
            readout(rule)(maps)
    with pytest.raises(UserError, match="has no absent"):
        plugins.load(f"{module}:absent")
    maps[:, :, :3] = -torch.inf  # not searched
    values["rules"]["best"] = {"readout": f"{module}:squared", "sampling": "bilinear"}
    with pytest.raises(UserError, match="answers cells that are not searched"):
        readout(params.validate(values, "x").rules["best"])(maps)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("multiple = 0", "its multiple is 0; allowed: a multiple of its strides"),
        ("multiple = 21", "its multiple is 21; allowed: a multiple of its strides"),
        ("mean = (0.5,)", "its mean is .*; allowed: three numbers"),
        ("std = (0.5, 0, 1)", "its std is .*; allowed: three numbers"),
        ("raise KeyError('x')", r"cannot be imported \(KeyError: 'x'\)"),
        ("import sys; sys.exit(3)", r"cannot be imported \(SystemExit: 3\)"),
    ],
)
def test_networks_that_do_not_fit_are_told(project, line, message):
    root, _, package, _, values = project
    text = NETWORK.replace("    stride = 14\n", f"    stride = 14\n    {line}\n")
    (root / package / "features.py").write_text(text)
    with pytest.raises(UserError, match=message):
        run_stages(values, "validate")


def test_a_module_of_the_project_hides_no_installed_one(project):
    """Nor is the folder searched before code of it is named: the file might be anyone's, further up."""
    root, _, _, _, _ = project
    (root / "yaml.py").write_text("raise SystemExit('not this one')\n")
    plugins.add(root)
    assert str(root) != sys.path[0]
    assert plugins.file_of("yaml") != root / "yaml.py"


def test_code_of_ones_own_is_hashed_like_a_stages(project):
    """The module, what it imports of its own package, relative imports too, and nothing else; comments do not count."""
    root, outside, package, module, _ = project
    names = (f"{package}.features", module)
    before = code.modules(Memory(), *names)
    assert before.keys() == {package, f"{package}.features", f"{package}.shared", module}
    (root / package / "shared.py").write_text("WIDTH = 24  # cells\n")
    (outside / f"{module}.py").write_text(RULE.replace("whatever the power", "in any case"))
    assert code.modules(Memory(), *names) == before
    (root / package / "shared.py").write_text("WIDTH = 25\n")
    after = code.modules(Memory(), *names)
    assert [name for name in before if after[name] != before[name]] == [f"{package}.shared"]
    assert not {name for name in sys.modules if name.partition(".")[0] in (package, module)}  # nothing ran


def test_the_recipe_of_the_page_works_as_it_is_printed(tmp_path, monkeypatch):
    """Its files and its lines of params.yaml, in the project that `semcorr init` makes."""
    page = (ROOT / "docs/extending.md").read_text()
    part = page[page.index("## A network and a readout of your own") : page.index("## A readout in semcorr")]
    (network, rule), [lines] = (re.findall(rf"```{kind}\n(.*?)```", part, re.DOTALL) for kind in ("python", "yaml"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_network.py").write_text(network)
    (tmp_path / "mine_rule.py").write_text(rule)
    text = (ROOT / "workflow/presets/demo.yaml").read_text()
    first, second = lines.removeprefix("backbones:\n").split("rules:\n")
    for key, line in (("\nbaselines:", first), ("\nevaluate:", second)):
        text = text.replace(key, f"{line}{key}", 1)
    for key, value in (
        ("backbones", "[edges]"),
        ("tunings", "[]"),
        ("rules", "[centre]"),
        ("datasets", "[toy_willow]"),
    ):
        text = re.sub(rf"^  {key}: \[.*?\]", f"  {key}: {value}", text, count=1, flags=re.MULTILINE)
    text = re.sub(
        r"^  layers: \{.*?\}", "  layers: {backbones: [], datasets: [], facets: [token], rule: null}", text, flags=re.M
    )
    text, _ = params.fill_in(text, "params.yaml")
    (tmp_path / "params.yaml").write_text(text)
    plan = graph.Graph(params.load())
    for job in plan.jobs():
        wanted = "toy_willow" in job.cell.values() or job.stage in ("validate", "weights")
        if wanted and job.stage in ("validate", "fetch", "weights", "extract", "match", "evaluate"):
            cli.run_stage(cli.parser().parse_args([job.stage, *job.cell.values()]))
    cell = json.loads(plan.job("evaluate", "edges", "frozen", "toy_willow", "centre").outputs["cell"].read_text())
    assert cell["num_keypoints"] == 800
    assert (
        match_images(PillowImage.new("RGB", (64, 48)), PillowImage.effect_noise((64, 48), 9)).made_by["backbone"]
        == "edges"
    )
    before = code.modules(Memory(), "mine_rule")
    assert before.keys() == {"mine_rule"}
    (tmp_path / "helper.py").write_text("SCALE = 1\n")
    (tmp_path / "mine_rule.py").write_text(rule + "\nimport helper\n")
    assert code.modules(Memory(), "mine_rule").keys() == {"mine_rule", "helper"}
    for name in ("mine_rule", "mine_network", "helper"):
        sys.modules.pop(name, None)


@pytest.mark.pipeline
def test_both_engines_run_them(clone, tmp_path, monkeypatch):
    """The same from either; an edit of the readout re-runs its matches and what follows, one of the network more."""
    package, module = _names("engines")
    outside = tmp_path / "outside"
    monkeypatch.setenv("PYTHONPATH", str(outside))
    one = clone("smoke")
    _write(one.root, outside, package, module)
    one.edit(lambda values: _use(values, package, module))
    one.commit("own")
    ran = one.snakemake()
    assert f"match@own-frozen-{DATA}-best" in ran
    first = one.metrics()
    (outside / f"{module}.py").write_text(RULE.replace("flatten(1).argmax(dim=1) if", "flatten(1).argmin(dim=1) if"))
    changed = one.dvc()
    assert f"match@own-frozen-{DATA}-best" in changed
    assert not changed & {f"match@own-frozen-{DATA}-argmax", f"extract@own-frozen-{DATA}", "weights@own-frozen"}
    assert {name.partition("@")[0] for name in changed} <= {"match", "evaluate", "layers", "draw", "report", "headline"}
    same = {path: content for path, content in one.metrics().items() if "cells" not in path and "report" not in path}
    assert sum(f"/{DATA}/" in path for path in same) == 2  # the numbers that git tracks, of both rules
    assert same == {path: first[path] for path in same}  # at a power of 1 nothing is another
    (one.root / package / "shared.py").write_text("WIDTH = 16\n")
    changed = one.dvc()
    assert {f"extract@own-frozen-{DATA}", f"match@own-frozen-{DATA}-argmax"} <= changed
    assert not {name for name in changed if name.startswith("fetch")}
