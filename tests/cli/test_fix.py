"""`semcorr fix`: what follows from the rest is filled in, and nothing else is touched."""

from pathlib import Path

import pytest

from semcorr import cli, params

ROOT = Path(__file__).parents[2]
FILE = Path("params.yaml")
PRESETS = [path.stem for path in sorted((ROOT / "workflow/presets").glob("*.yaml"))]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Makes params.yaml from a preset, with parts of its text, each there once, replaced."""
    monkeypatch.chdir(tmp_path)

    def make(preset: str, changes: dict[str, str]) -> str:
        text = params.placed((ROOT / f"workflow/presets/{preset}.yaml").read_text())
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        FILE.write_text(text)
        return text

    return make


def _fixed(capsys) -> list[str]:
    cli.main(["fix"])
    return capsys.readouterr().out.splitlines()


def _refused(capsys) -> list[str]:
    """Where the remaining mistakes are; the file stays as it is."""
    before = FILE.read_text()
    with pytest.raises(SystemExit) as ended:
        cli.main(["fix"])
    assert ended.value.code == 2
    assert FILE.read_text() == before
    said = capsys.readouterr().err.removeprefix("semcorr fix: ").splitlines()
    assert all(line.startswith("params.yaml: ") for line in said)
    return [line.split(": ")[1] for line in said]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_right_stays(project, capsys, preset):
    text = project(preset, {})
    before = FILE.stat().st_mtime_ns
    assert _fixed(capsys) == ["params.yaml: nothing to fix"]
    assert (FILE.read_text(), FILE.stat().st_mtime_ns) == (text, before)


def test_tuning_is_turned_off_and_on_again(project, capsys):
    """No other line changes, and the comments stay."""
    off = {"  tunings: [last2]": "  tunings: []"}
    project("demo", off)
    assert _fixed(capsys) == [
        "grid.weights: [frozen, random, last2] -> [frozen, random]",
        "grid.train: toy_spair_trn -> null",
        "grid.validate: toy_spair_val -> null",
        "grid.trunks: [toy_spair_trn, toy_spair_val, toy_spair_test, toy_willow] -> []",
    ]
    text = FILE.read_text()
    followed = {
        "[frozen, random, last2] # all": "[frozen, random] # all",
        "train: toy_spair_trn": "train: null",
        "validate: toy_spair_val": "validate: null",
        "trunks: [toy_spair_trn, toy_spair_val, toy_spair_test, toy_willow]": "trunks: []",
    }
    expected = project("demo", off | followed)
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        " ".join(line.split()) for line in expected.splitlines()
    ]
    FILE.write_text(text.replace("  tunings: []", "  tunings: [last2]"))
    assert _refused(capsys) == ["grid.train", "grid.validate"]  # these follow from nothing
    project("demo", {old: new for old, new in followed.items() if "null" not in new})
    assert [line.split(":")[0] for line in _fixed(capsys)] == ["grid.weights", "grid.trunks"]
    assert params.load().to_dict() == params.load(ROOT / "workflow/presets/demo.yaml").to_dict()


def test_the_trunk_is_as_deep_as_the_tunings_need(project, capsys):
    project("spair71k", {"tunings: [last1, last2, last4, recipe]": "tunings: [last1, last2]"})
    changed = ["grid.weights: [frozen, last1, last2, last4, recipe] -> [frozen, last1, last2]", "trunk.blocks: 4 -> 2"]
    assert _fixed(capsys) == changed
    project("spair71k", {"trunk:\n  blocks: 4": "trunk:\n  blocks: 1"})
    assert _fixed(capsys) == ["trunk.blocks: 1 -> 4"]
    project("demo", {"  blocks: 2 # depth": "  blocks: 9 # depth"})
    assert _fixed(capsys) == ["trunk.blocks: 9 -> 2"]
    project("unseen", {"layer: 10": "layer: [4, 10]"})  # all blocks between feature layers are tuned
    assert _fixed(capsys) == ["trunk.blocks: 4 -> 7"]


def test_views_that_are_left_out_are_filled_in(project, capsys):
    """Each backbone of the grid says its views, and mirrored ones have their trunk."""
    line = "    views: [plain] # or [plain, mirrored]: of each image; similarities are averaged\n"
    text = project("demo", {line: ""})
    assert params.load().to_dict()["backbones"]["dinov2_s14"].keys().isdisjoint({"views"})
    assert _fixed(capsys) == ["backbones.dinov2_s14.views: unset -> [plain]"]
    assert params.load().to_dict() == params.load(ROOT / "workflow/presets/demo.yaml").to_dict()
    assert set(text.splitlines()) <= set(FILE.read_text().splitlines())
    project("demo", {"views: [plain] #": "views: [plain, mirrored] #"})
    assert _fixed(capsys) == ["trunk.mirrored: False -> True"]
    project("demo", {"views: [plain] #": "views: [plain, mirrored@560, plain@672] #"})
    assert _fixed(capsys) == ["trunk.mirrored: False -> True", "trunk.sizes: unset -> [560, 672]"]


def test_lists_keep_their_order_and_comments(project, capsys):
    several = "weights:\n    - last2 # mine\n    - gone\n    - frozen # theirs\n"
    project("demo", {"weights: [frozen, random, last2] # all rows: baselines and tunings\n": several})
    assert _fixed(capsys) == ["grid.weights: [last2, gone, frozen] -> [last2, frozen, random]"]
    kept = "  weights:\n    - last2 # mine\n    - frozen # theirs\n    - random\n  datasets: ["
    assert kept in FILE.read_text()


def test_what_an_alias_shares_stays_as_it_is(project, capsys):
    test_sets = {"datasets: [toy_spair_test, toy_willow]": "datasets: &tested [toy_willow]"}
    project("demo", test_sets | {"[toy_spair_trn, toy_spair_val, toy_spair_test, toy_willow]": "*tested"})
    assert _fixed(capsys) == ["grid.trunks: [toy_willow] -> [toy_spair_trn, toy_spair_val, toy_willow]"]
    assert params.load().grid.datasets == ["toy_willow"]
    assert "&tested [toy_willow]" in FILE.read_text()


def test_keys_that_are_not_there_are_added(project, capsys):
    project("demo", {"  weights: [frozen, random, last2] # all rows: baselines and tunings\n": ""})
    assert _fixed(capsys) == ["grid.weights: unset -> [frozen, random, last2]"]
    assert params.load().to_dict() == params.load(ROOT / "workflow/presets/demo.yaml").to_dict()


def test_what_remains_is_told(project, capsys):
    """With what was fixed left out; and where nothing can be understood, everything is told."""
    project("demo", {"weights: [frozen, random, last2]": "weights: [frozen]", "threads: 2": "threads: 0"})
    assert _refused(capsys) == ["threads"]
    project("demo", {"tunings: [last2]": "tunings: [last2, best]", "rules: [argmax": "rules: [worst"})
    assert _refused(capsys) == ["grid.tunings", "grid.rules"]
    for text in ("grid: [1]\n", "grid:\n", "- 1\n", "grid: {baselines: 3, tunings: {}}\n", "a: [\n"):
        FILE.write_text(text)
        assert _refused(capsys)


def test_unused_entries_are_pointed_out(project, capsys):
    project("smoke", {"backbones: [dinov2_tiny, dinov3_tiny, sam_tiny]": "backbones: [sam_tiny]"})
    hint = "params.yaml: the grid does not use backbones.dinov2_tiny, backbones.dinov3_tiny\n"
    for verb in (["fix"], ["plan", "--tflops", "1"]):
        cli.main(verb)
        assert capsys.readouterr().err == hint
