"""`semcorr preset`: nothing of anybody's is overwritten, and `make` says what it does not do."""

import subprocess
import sys
from pathlib import Path

import pytest

from semcorr import cli, params
from semcorr.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml, under git, and nothing else."""
    monkeypatch.chdir(tmp_path)
    for command in (["init", "-q"], ["config", "user.email", "a@example.org"], ["config", "user.name", "a"]):
        subprocess.run(["git", *command], check=True)
    cli.main(["preset", "smoke"])
    return tmp_path


def _refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["preset", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_an_edited_params_is_not_overwritten(project, capsys):
    file = project / "params.yaml"
    cli.main(["preset", "demo"])  # over another preset, as it is
    smoke = params.placed((ROOT / "workflow/presets/smoke.yaml").read_text())
    assert (project / "params.yaml.bak").read_text() == smoke
    mine = file.read_text().replace("epochs: 8", "epochs: 9")
    file.write_text(mine)
    assert "neither a preset nor committed" in _refused(capsys, "smoke")
    assert file.read_text() == mine
    subprocess.run(["git", "add", "params.yaml"], check=True)
    subprocess.run(["git", "commit", "-q", "-m", "mine"], check=True)
    cli.main(["preset", "smoke"])
    assert (project / "params.yaml.bak").read_text() == mine
    file.write_text(mine + "# and more\n")
    cli.main(["preset", "smoke", "--force"])
    assert (project / "params.yaml.bak").read_text() == mine + "# and more\n"
    assert params.load().preset == "smoke"


def test_keys_are_set_with_their_comments_kept(project, capsys):
    keys = [
        "datasets.pfwillow.sources.0.path=/data/PF",
        "backbones.dinov2_s14.image_size=448",
        "rules.softargmax.window=7",
    ]
    cli.main(["preset", "pfwillow", "--set", *keys])
    values = params.load()
    assert values.datasets["pfwillow"].sources[0].path == "/data/PF"
    assert values.backbones["dinov2_s14"].image_size == 448
    assert values.rules["softargmax"].window == 7
    before = Path("params.yaml").read_text()
    preset = params.placed((ROOT / "workflow/presets/pfwillow.yaml").read_text())
    changed = {
        "path: data/PF-dataset": "path: /data/PF",
        "image_size: 336": "image_size: 448",
        "window: 5": "window: 7",
    }
    for old, new in changed.items():  # and nothing else: comments, anchors and layout stay
        preset = preset.replace(old, new)
    assert before == preset
    for wrong, said in {
        "datasets.pfwilow.limit=3": "has no key datasets.pfwilow.limit",
        "datasets.pfwillow.sources.7.path=x": "has no key",
        "evaluate.bootstrap=many": "evaluate.bootstrap: ",
        "evaluate.bootstrap=[": "not valid YAML",
        "preset": "preset: ",
    }.items():
        assert said in _refused(capsys, "pfwillow", "--set", wrong, "--force")
    assert Path("params.yaml").read_text() == before


def test_not_while_an_engine_is_at_work(project, capsys, monkeypatch):
    hold = "import time; from semcorr.engine.at_work import at_work\n"
    hold += "with at_work('python -m semcorr match'): print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        said = f"at work in this folder: python -m semcorr match (process {running.pid})"
        assert said in _refused(capsys, "demo")
        running.kill()
    cli.main(["preset", "demo"])


def test_presets_name_no_path_outside_the_project():
    for path in sorted((ROOT / "workflow/presets").glob("*.yaml")):
        for dataset in params.load(path).datasets.values():
            for source in dataset.sources:
                if source.kind == "path":
                    assert not Path(source.path).is_absolute()
                    assert ".." not in Path(source.path).parts


def test_stages_find_their_project_from_a_folder_below(project, monkeypatch, capsys):
    (project / "notes/today").mkdir(parents=True)
    monkeypatch.chdir(project / "notes/today")
    cli.main(["fetch", "toy_willow"])
    assert (project / "data/toy_willow/pairs.parquet").exists()
    assert not (project / "notes/today/data").exists()


def test_outside_a_project_it_is_said_where_was_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"params\.yaml: no such file; looked in {tmp_path} and the folders above"):
        params.load()


def _make(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = ["make", "-s", "-n", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_make_notices_an_environment_of_another_folder(tmp_path):
    """Its scripts name the Python that made them; one that is somewhere else, or gone, is made again."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    binaries = tmp_path / ".venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to("/usr/bin/env")
    (tmp_path / ".venv/installed").write_text("")
    assert "venv .venv" in _make(tmp_path, "setup").stdout
    (binaries / "python").unlink()
    (binaries / "python").symlink_to("/bin/true")
    (binaries / "pip").write_text("#!/somewhere/else/.venv/bin/python\n")
    (tmp_path / ".venv/installed").write_text("")
    assert "venv .venv" in _make(tmp_path, "setup").stdout
    (binaries / "pip").write_text(f"#!{tmp_path}/.venv/bin/python\n")
    (tmp_path / ".venv/installed").write_text("")
    assert "venv .venv" not in _make(tmp_path, "setup").stdout


def test_make_demo_under_another_preset_says_so(tmp_path):
    recipe = _make(ROOT, "demo").stdout
    check = next(line for line in recipe.splitlines() if "preset: demo" in line)
    (tmp_path / "params.yaml").write_text("preset: pfwillow\n")
    done = subprocess.run(["sh", "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "params.yaml is not the demo's" in done.stderr
    (tmp_path / "params.yaml").write_text("# x\npreset: demo\n")
    assert subprocess.run(["sh", "-c", check], cwd=tmp_path, check=False).returncode == 0
