"""Fixtures: small experiments, and clones of the project to run engines in."""

import contextlib
import hashlib
import http.server
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

from semcorr import cli, params
from semcorr.artifacts.files import write_json
from semcorr.datasets.base import Pair
from semcorr.engine import graph

ROOT = Path(__file__).parents[1]
settings.register_profile("semcorr", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("semcorr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that none runs alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and the test processes fight over the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smoke() -> dict:
    """The smoke preset as plain values."""
    return params.read_yaml(ROOT / "workflow/presets/smoke.yaml")


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], "Clone"]:
    """A function that makes a clone of the working tree: tracked and new files, as a fresh repository."""

    def make(preset: str) -> Clone:
        folder = tmp_path_factory.mktemp("clone") / "semcorr"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file() and not name.startswith("metrics/") and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        done = Clone(folder)
        done.run("git", "init", "-q", "-b", "main")
        done.run("git", "config", "user.email", "test@example.org")
        done.run("git", "config", "user.name", "test")
        done.run(sys.executable, "-m", "semcorr", "preset", preset)
        done.commit("preset")
        return done

    return make


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


class Watched:
    """A page in a browser, and everything that it complained of or asked for."""

    def __init__(self, page):
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def watch():
    """A function that opens a page in headless Chromium, with no network but this machine."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH; on Debian: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield lambda **options: Watched(running.new_page(**options))
        running.close()


def setting(*path_and_value: object) -> Callable[[dict], None]:
    """A change of nested values: keys down to the place, then what to put there."""
    *path, key, value = path_and_value

    def change(values: dict) -> None:
        for step in path:
            values = values[step]
        values[key] = value

    return change


def a_pair(source_keypoints: list, target_keypoints: list, **more: Any) -> Pair:
    """Image a and image b with keypoints numbered from 0, and further fields of a pair."""
    ids = [str(number) for number in range(len(source_keypoints))]
    given = {"id": "x", "category": "c", "source": "a", "target": "b", "keypoint_ids": ids} | more
    return Pair(source_keypoints=source_keypoints, target_keypoints=target_keypoints, **given)


def run_stages(values: dict, *stages: str) -> graph.Graph:
    """Write params.yaml into this folder and run some of its stages here, in their order."""
    write_json(Path("params.yaml"), values)
    plan = graph.Graph(params.load())
    for job in plan.jobs():
        if job.stage in stages:
            cli.run_stage(cli.parser().parse_args([job.stage, *job.cell.values()]))
    return plan


def randomised(net: Any) -> Any:
    """A network whose every tensor is random, so that none can be mistaken for another or left as it was."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return net.eval()


def small(values: dict) -> None:
    """One backbone, tested on SPair-71k's format: the smallest experiment with every stage in it, and every option."""
    test = values["datasets"]["toy_spair_val"] | {"split": "test"}
    values["datasets"] = {**values["datasets"], "toy_spair_test": test}
    values["datasets"].pop("toy_willow")
    values["grid"] |= {"backbones": ["dinov2_tiny"], "datasets": ["toy_spair_test"]}
    layers = {
        "backbones": ["dinov2_tiny"],
        "datasets": ["toy_spair_test"],
        "facets": ["token", "key"],
        "rule": "argmax",
    }
    values["grid"]["layers"] = layers
    values["backbones"]["dinov2_tiny"]["views"] = ["plain", "mirrored", "plain@126"]
    values["trunk"] |= {"mirrored": True, "sizes": [126]}
    values["tunings"]["last1"] |= {
        "head": {"upsample": 2, "channels": 16, "learning_rate": 2.0},
        "loss": {"name": "gaussian_ce", "temperature": 0.05, "sigma_cells": {"from": 2.0, "to": 1.0}},
        "augment": {"flip": True, "photometric": 0},
    }
    values["grid"]["trunks"] = ["toy_spair_trn", "toy_spair_val", "toy_spair_test"]
    values["evaluate"]["references"].pop("pfwillow")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder that the test processes of one run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture
def finished(clone, shared_folder, tmp_path) -> "Clone":
    """A copy of a clone in which Snakemake has run the small experiment, once for all tests."""
    original = shared_folder / "finished"
    with FileLock(shared_folder / "finished.lock"):
        if not original.exists():
            project = clone("smoke")
            project.edit(small)
            project.commit("small")
            project.snakemake()
            project.commit("first")
            project.root.rename(original)
    shutil.copytree(original, tmp_path / "semcorr", symlinks=True)
    return Clone(tmp_path / "semcorr")


# Children are forked from a process that has imported everything and computed nothing, so that a kill meets work.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torchvision", "timm", *(f"semcorr.stages.{stage}" for stage in graph.STAGES)])


def fork(folder: Path, *words: str) -> multiprocessing.Process:
    """Start a command line of semcorr in a folder."""
    process = FORKS.Process(target=_command, args=[str(folder), words])
    process.start()
    return process


def _command(folder: str, words: tuple[str, ...]) -> None:
    os.chdir(folder)
    cli.main(list(words))
    os._exit(0)  # without the half second that Python takes to put torch away


def run_forked(folder: Path, *words: str) -> None:
    """Run a command line of semcorr in a folder; it must end well."""
    process = fork(folder, *words)
    process.join()
    assert process.exitcode == 0


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of 24 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk: sudo make test; full and read-only disks are not tried without")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets not even root mount; in a container: docker run --cap-add SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; the file that takes it."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@pytest.fixture
def server():
    """A local HTTP server that misbehaves on request."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=[0.02], daemon=True)
        thread.start()
        yield running
        running.shutdown()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by name; `faults` says, by name, what goes wrong with the next requests.

    It also looks like a model hub: files have an ETag and a commit.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request, client_address):  # a client that was killed is no news
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, head=False):
        name = self.path[1:]
        self.server.requests += 1
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        content = self.server.files.get(name)
        if content is None or fault == "404":
            self.send_error(404)
            return
        if fault == "403":
            self.send_error(403, "Permission denied")
            return
        if fault == "wrong bytes":
            content = b"x" + content[1:]
        self.send_response(200)
        if fault != "no length, half":
            self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if head:
            return
        if fault == "slow":
            for at in range(0, len(content), 4000):
                self.wfile.write(content[at : at + 4000])
                time.sleep(0.01)
            return
        self.wfile.write(content[: len(content) // 2] if fault.endswith("half") else content)

    def log_message(self, *_):
        pass


# Root may write to any file; what engines do must not rest on that.
AS_ANYBODY = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override")
ORDINARY = AS_ANYBODY if os.geteuid() == 0 else ()  # of util-linux; without it the tests fail, and do not try less


class Clone:
    """A copy of the project in which engines can run, with an ordinary user's rights."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a command in the clone; its stdout and stderr. Fails the test on another exit code than `expect`."""
        done = subprocess.run(
            [*ORDINARY, *command], cwd=self.root, env=self._environment(), capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == expect, f"{' '.join(command)}: exit code {done.returncode}\n{output[-4000:]}"
        return output

    def start(self, *command: str) -> tuple[subprocess.Popen, Path]:
        """Start a command in the clone, in a process group of its own; it, and the file that takes what it says."""
        said = self.root.parent / f"said-{time.monotonic_ns()}.log"
        with said.open("w") as file:
            running = subprocess.Popen(
                [*ORDINARY, *command],
                cwd=self.root,
                env=self._environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return running, said

    def _environment(self) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "PYTEST"))}
        return environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def commit(self, message: str) -> None:
        """Commit everything that is not ignored."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "-q", "-m", message, "--allow-empty")

    def edit(self, change: Callable[[dict], None]) -> None:
        """Change params.yaml, comments lost."""
        from ruamel.yaml import YAML

        path = self.root / "params.yaml"
        yaml = YAML(typ="safe")
        values = yaml.load(path.read_text())
        change(values)
        with path.open("w") as file:
            yaml.dump(values, file)

    def dvc(self) -> set[str]:
        """`dvc repro`; the stages that ran or came from the run cache, but for `validate`, which always runs."""
        output = self.run("dvc", "repro")
        ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")} - {"validate"}
        return ran | {line.split("'")[1] for line in output.splitlines() if "is cached - skipping run" in line}

    def snakemake(self, *options: str) -> set[str]:
        """`snakemake --cores all`; `rule@wildcards` of the jobs that ran."""
        output = self.run("snakemake", "--cores", "all", *options)
        ran, rule = set(), None
        for line in output.splitlines():
            words = line.split()
            if words[:1] in (["rule"], ["localrule"]):
                rule = words[1].rstrip(":")
                ran.add(rule)
            elif words[:1] == ["wildcards:"] and rule:
                ran.discard(rule)
                values = [value.split("=")[1] for value in line.split("wildcards:")[1].strip().split(", ")]
                ran.add(f"{rule}@{'-'.join(values)}")
        return ran - {"all"}

    def metrics(self) -> dict[str, bytes]:
        """All files below metrics, by path."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in sorted((self.root / "metrics").rglob("*"))
            if path.is_file() and path.name not in (".gitignore", ".snakemake_timestamp")
        }


def rewrite(path: Path, table) -> None:
    """Put another data frame into a table of ours, its provenance kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path).metadata
    record = {b"semcorr": metadata[b"semcorr"]}
    path.unlink()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(record), path)
