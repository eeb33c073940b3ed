"""What is shipped: a wheel that is ready to be published, installed beside other things, at work in an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image as PillowImage
from PIL import ImageDraw

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from what git knows of the working tree, as somebody would who clones it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    subprocess.run(build, cwd=source, check=True)
    [found] = out.glob("*.whl")
    return found


def test_it_holds_the_projects_files_and_no_more(wheel):
    """Each as the repository has it: presets, rules, schemas, profiles, templates, the two top-level files."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        shipped = {name for name in names if name.startswith("semcorr/project/")}
        for name in shipped:
            assert file.read(name) == (ROOT / name.removeprefix("semcorr/project/")).read_bytes(), name
    for folder in ("workflow/presets", "workflow/rules", "workflow/schemas", "profiles"):
        there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {f"semcorr/project/{name}" for name in there} <= shipped, folder
    assert {"semcorr/project/Snakefile", "semcorr/project/dvc.yaml", "semcorr/report/templates/report.html"} <= names
    assert not {name for name in names if name.startswith(("tests/", "benchmarks/", "metrics/"))}
    assert wheel.stat().st_size < 1_000_000


def test_its_metadata_are_ready_to_be_published(wheel):
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        content = file.read(name)
    metadata = Metadata.from_email(content, validate=True)
    assert metadata.description_content_type == "text/markdown"
    assert metadata.license_expression == "Apache-2.0"
    core = [one for one in metadata.requires_dist if one.marker is None]
    assert not {one.name for one in core} & {"dvc", "snakemake"}
    assert all(spec.operator != "==" for one in metadata.requires_dist for spec in one.specifier)
    extras = {
        name for one in metadata.requires_dist if one.marker and one.name == "dvc" for name in metadata.provides_extra
    }
    assert {"workflow", "cluster", "dev"} <= extras
    assert message_from_bytes(content)["Requires-Python"] == ">=3.11.4"


def test_the_lock_keeps_what_is_asked_for():
    """Every requirement, with its extras, has one exact version in the lock, within its range, and a hash."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and line[0].isalnum():
            requirement = Requirement(line.rstrip(" \\"))
            [spec] = requirement.specifier
            assert spec.operator == "=="
            pinned[canonicalize_name(requirement.name)] = spec.version
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        asked = Requirement(text)
        if asked.name != "semcorr":
            assert asked.specifier.contains(pinned[canonicalize_name(asked.name)]), text


@pytest.mark.pipeline
def test_two_images_in_an_empty_folder(wheel, tmp_path):
    """A bare environment that shares the installed torch; nothing of this repository on its path."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    there = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True
    )
    Path(there.stdout.decode().strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True)
    folder = tmp_path / "empty"
    folder.mkdir()
    for name, at in (("a.png", 20), ("b.png", 70)):
        image = PillowImage.new("RGB", (160, 120), "white")
        ImageDraw.Draw(image).ellipse((at, 30, at + 60, 90), fill="red")
        image.save(folder / name)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def semcorr(*words: str) -> subprocess.CompletedProcess:
        command = [tmp_path / "venv/bin/semcorr", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    where = subprocess.run([python, "-c", "import semcorr; print(semcorr.__file__)"], cwd=folder, capture_output=True)
    assert str(tmp_path / "venv") in where.stdout.decode()
    options = ["--backbone", "demo", "--image-size", "224", "--points", "50,60", "35,45"]
    done = semcorr("match-images", "a.png", "b.png", *options, "--out", "m.png", "--json", "m.json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    values = json.loads((folder / "m.json").read_text())
    assert (values["source_width"], values["source_height"]) == (160, 120)
    for match in values["matches"]:  # the disc has moved by 50 pixels; a cell is 10
        assert abs(match["target"][0] - match["source"][0] - 50) <= 20
        assert abs(match["target"][1] - match["source"][1]) <= 20
    with PillowImage.open(folder / "m.png") as shown:
        assert shown.width > 320
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "m.json", "m.png"]
    for words, said in (
        (["backbones"], "DINOv3 License"),
        (["plan", "smoke", "--tflops", "1"], "extract"),
        (["table"], "looked in"),
    ):
        done = semcorr(*words)
        assert said in done.stdout + done.stderr, words
