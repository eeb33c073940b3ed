"""`semcorr init`: a project folder of one's own, from an installed package, in which both engines run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Clone

from semcorr import __version__, cli
from semcorr.engine import project, shipped
from semcorr.engine.memory import Memory

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A folder outside any git repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def _files(folder: Path) -> set[str]:
    """All files of a project, without its repository's."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".git/")}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def _refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_new_project_holds_what_both_engines_need(tmp_path, capsys):
    cli.main(["init", "deep/mine", "--preset", "pfwillow"])
    assert "deep/mine: a project with preset pfwillow, and a git repository" in capsys.readouterr().out
    mine = tmp_path / "deep/mine"
    copied = set()
    for name in shipped.FILES:
        below = _files(ROOT / name) if (ROOT / name).is_dir() else ["."]
        copied |= {(Path(name) / one).as_posix() for one in below}
    assert {"Snakefile", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"} <= copied
    assert {"workflow/rules/common.smk", "workflow/presets/demo.yaml", "profiles/default/config.yaml"} <= copied
    assert _files(mine) == copied | {"params.yaml", "requirements.txt", "README.md", ".semcorr-version"}
    for name in copied:
        assert (mine / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert os.access(mine / "profiles/cluster/status.sh", os.X_OK)
    preset = (ROOT / "workflow/presets/pfwillow.yaml").read_text()  # seen from another folder
    assert (mine / "params.yaml").read_text() == preset.replace("$schema=../schemas/", "$schema=workflow/schemas/")
    assert (mine / "requirements.txt").read_text() == f"semcorr[workflow]=={__version__}\n"
    assert f"semcorr {__version__}" in (mine / "README.md").read_text()
    assert (mine / ".semcorr-version").read_text() == f"{project.installed(Memory())}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert _git("-C", str(mine), "log", "--all") == ""  # the first commit is the user's


def test_the_repository_around_it_is_used(tmp_path, monkeypatch, capsys):
    """Unless that ignores the folder: DVC would refuse to work there."""
    _git("init", "-q")
    (tmp_path / ".gitignore").write_text("scratch/\n")
    cli.main(["init", "mine"])
    assert "git repository" not in capsys.readouterr().out
    assert not (tmp_path / "mine/.git").exists()
    cli.main(["init", "scratch/mine"])
    assert (tmp_path / "scratch/mine/.git").is_dir()


def test_an_empty_folder_is_filled(tmp_path, monkeypatch):
    """The current one too, and one with nothing but a repository."""
    for name in ("empty", "repository"):
        (tmp_path / name).mkdir()
    _git("init", "-q", "repository")
    monkeypatch.chdir(tmp_path / "empty")
    cli.main(["init", "."])
    cli.main(["init", "../repository/"])
    assert _files(tmp_path / "empty") == _files(tmp_path / "repository") > {"params.yaml"}
    assert Path.cwd().samefile(tmp_path / "empty")
    assert (tmp_path / "empty/.git").is_dir()


def test_refusals_leave_everything_as_it_was(tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad.yaml").write_text("preset: bad\n")
    before = sorted(tmp_path.rglob("*"))
    assert "full: not empty, it holds thesis.tex" in _refused(capsys, "full")
    assert "file: exists and is not a folder" in _refused(capsys, "file")
    assert "--preset nonsense: no such preset; allowed: demo, pfwillow," in _refused(
        capsys, "new", "--preset", "nonsense"
    )
    assert "bad.yaml: " in _refused(capsys, "new", "--preset", "bad.yaml")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git: not found" in _refused(capsys, "new")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch, there):
    """Neither in a new folder nor in an empty one that was there."""
    if there:
        (tmp_path / "mine").mkdir()

    def copy(source: Path, target: Path) -> None:
        (target / "Snakefile").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shipped, "copy", copy)
    assert "mine: cannot be written: the disk is full" in _refused(capsys, "mine")
    assert [path.name for path in tmp_path.rglob("*")] == (["mine"] if there else [])


def test_another_semcorr_is_said_and_no_error(tmp_path, monkeypatch, caplog):
    cli.main(["init", "mine", "--preset", "smoke"])
    monkeypatch.chdir(tmp_path / "mine")
    cli.main(["validate"])
    assert "this project was made with" not in caplog.text
    Path(".semcorr-version").write_text("semcorr 0.0.9, code 0123456789abcdef\n")
    cli.main(["validate"])
    [said] = [one.getMessage() for one in caplog.records if "this project was made with" in one.getMessage()]
    assert f"semcorr 0.0.9, code 0123456789abcdef; here is {project.installed(Memory())}." in said
    Path(".semcorr-version").unlink()  # of somebody who does not want it
    caplog.clear()
    cli.main(["validate"])
    assert "this project was made with" not in caplog.text


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A package as a wheel installs it, with the project's files inside, found before this repository's."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "semcorr", site / "semcorr", ignore=shutil.ignore_patterns("__pycache__"))
    shipped.copy(ROOT, site / "semcorr/project")
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


def _tiny(values: dict) -> None:
    """One drawn dataset, one untrained network, one rule, nothing fine-tuned."""
    values["grid"] |= {"backbones": ["dinov2_tiny"], "tunings": [], "weights": ["frozen"], "rules": ["argmax"]}
    values["grid"] |= {"train": None, "validate": None, "trunks": []}
    values["datasets"] = {"toy_willow": values["datasets"]["toy_willow"]}
    values["tunings"] = {}
    values["evaluate"]["references"].pop("spair")


@pytest.mark.pipeline
def test_both_engines_run_in_it(smoke, tmp_path, installed):
    """With the installed package alone, before anything is committed; the second engine has nothing to do."""
    values = json.loads(json.dumps(smoke))
    _tiny(values)
    (tmp_path / "tiny.yaml").write_text(json.dumps(values))
    here = Clone(tmp_path)
    here.run(sys.executable, "-m", "semcorr", "init", "mine", "--preset", "tiny.yaml")
    mine = Clone(tmp_path / "mine")
    assert mine.run(sys.executable, "-c", "import semcorr; print(semcorr.__file__)").startswith(str(installed))
    (mine.root / "semcorr").mkdir()  # a folder of that name is not the package
    (mine.root / ".semcorr-version").write_text("semcorr 0.0.9, code 0123456789abcdef\n")
    said = mine.run("snakemake", "--cores", "all")
    assert "made with semcorr 0.0.9" in said
    assert "9 of 9 steps (100%) done" in said  # eight jobs, and `all`
    said = mine.run("dvc", "repro")
    assert "made with semcorr 0.0.9" in said
    assert re.findall(r"Running stage '(.*)'", said) == ["validate"]
    status = mine.run("git", "status", "--short", "--ignored").splitlines()
    assert {line[3:] for line in status if line.startswith("!!")} >= {"data/", "features/", "matches/", ".semcorr/"}
    assert "?? dvc.lock" in status
