"""Past one machine: what jobs ask a cluster for, and a real Slurm of one node, which kills those that take more."""

import itertools
import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Clone, run_stages

from semcorr import params
from semcorr.datasets import toy
from semcorr.engine import cluster, graph
from semcorr.errors import UserError

TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(tool, path=PATH) for tool in TOOLS),
    reason="needs Slurm and to be root, to start its daemons; on Debian: apt install slurm-wlm",
)
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 Sockets=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm of one node without authentication, its commands on the PATH, and the file of all that they are told."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, ports=ports, folder=folder, cores=os.cpu_count()))
    for tool in TOOLS[2:]:  # jobs lose the variable on the way, so each command sets it again
        real = shutil.which(tool, path=PATH)
        wrapper = folder / "bin" / tool
        wrapper.write_text(f'#!/bin/sh\necho {tool} "$@" >> {folder}/said\nSLURM_CONF={conf} exec {real} "$@"\n')
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons = [
        subprocess.Popen([shutil.which(name, path=PATH), "-D", *more], env=environment, stderr=subprocess.DEVNULL)
        for name, more in (("slurmctld", ["-c"]), ("slurmd", ["-N", host]))
    ]
    try:
        for _ in range(60):
            state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout
            if state.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"Slurm's node did not come up: {state!r}")
        yield folder / "said"
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(20)


def _on_this_node(profile: str, *more: str) -> list[str]:
    """A run of a profile that ships, without a GPU; on a busy machine it may take long."""
    networks = [f"{rule}:gpu=0" for rule in ("extract", "trunk", "finetune", "adapt", "match")]
    options = [
        "--profile",
        f"profiles/{profile}",
        "--cores",
        "2",
        "--default-resources",
        "slurm_partition=debug",
        "gpu=0",
    ]
    options += ["--set-resources", *networks, *(f"{rule}:runtime=30" for rule in ("weights", "extract", "match"))]
    return ["snakemake", *options, "--retries", "0", "--seconds-between-status-checks", "1", *more]


def _asked(slurm: Path, option: str) -> list[str]:
    """What each job told Slurm by one of sbatch's options."""
    calls = [line.replace("=", " ").split() for line in slurm.read_text().splitlines() if line.startswith("sbatch")]
    return [words[words.index(option) + 1] for words in calls]


SLURM = ["--slurm-no-account", "--slurm-init-seconds-before-status-checks", "1"]


def _lose_scores(project: Clone) -> None:
    """Take a few jobs' outputs away; each job starts slowly on a cluster."""
    for folder in ("matches", "metrics/smoke/cells"):
        shutil.rmtree(project.root / folder / "dinov2_tiny/frozen")


@pytest.mark.pipeline
@needs_slurm
def test_clusters_give_the_same_metrics(finished, slurm):
    """Jobs of a cluster without GPUs, short ones in groups, by both profiles that ship."""
    made = finished.metrics()
    _lose_scores(finished)
    said = finished.run(*_on_this_node("slurm", *SLURM))
    assert finished.metrics() == made
    assert "has been submitted with SLURM jobid" in said
    assert "group_cells" in said
    _lose_scores(finished)
    said = finished.run(*_on_this_node("cluster"))
    assert finished.metrics() == made
    assert "Submitted group job" in said


@pytest.mark.pipeline
@needs_slurm
@pytest.mark.parametrize("profile", ["slurm", "cluster"])
def test_a_network_asks_for_a_gpu(finished, slurm, profile):
    """As the profile ships: this node has no GPU and refuses, but has been asked right."""
    (finished.root / "features/dinov2_tiny/frozen/toy_spair_test.h5").unlink()
    options = ["--seconds-between-status-checks", "1", *(SLURM if profile == "slurm" else [])]
    finished.run("snakemake", "--profile", f"profiles/{profile}", "--retries", "0", *options, expect=1)
    assert _asked(slurm, "--gpus") == ["1"]
    (job,) = [job for job in _jobs(finished) if job.title == EXTRACT]
    needs = cluster.Needs(graph.Graph(params.load(finished.root / "params.yaml")))
    assert _asked(slurm, "--mem") == [str(needs.megabytes(job, 1))]
    assert _asked(slurm, "-t" if profile == "slurm" else "--time") == [str(needs.minutes(job, 1))]


EXTRACT = "extract dinov2_tiny frozen toy_spair_test"


def _jobs(project: Clone) -> list[graph.Job]:
    return list(graph.Graph(params.load(project.root / "params.yaml")).jobs())


@pytest.mark.pipeline
@needs_slurm
@pytest.mark.parametrize("profile", ["slurm", "cluster"])
def test_a_job_killed_for_its_memory_is_retried_with_more(clone, slurm, profile, monkeypatch):
    """Its first attempt asks for less than torch alone takes."""
    monkeypatch.setenv("SEMCORR_MARGIN", "0.3")
    project, made = clone("smoke"), "data/weights/dinov2_tiny/frozen.safetensors"
    options = ["--retries", "2", *(SLURM if profile == "slurm" else []), made]
    said = project.run(*_on_this_node(profile, *options))
    assert (project.root / made).exists()
    memory = [int(asked) for asked in _asked(slurm, "--mem")]
    assert len(memory) > 1, said
    assert all(after == 2 * before for before, after in itertools.pairwise(memory))
    logs = [
        path.read_text() for folder in ("logs/cluster", ".snakemake") for path in (project.root / folder).rglob("*.log")
    ]
    assert "memory limit" in "".join(logs)


@pytest.fixture
def values(smoke, tmp_path, monkeypatch):
    """The smoke preset with one backbone, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("SEMCORR_TFLOPS", "SEMCORR_MARGIN"):
        monkeypatch.delenv(name, raising=False)
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]
    return values


def _needs(values: dict, *job: str) -> tuple[cluster.Needs, graph.Job]:
    jobs = graph.Graph(params.validate(values, "params.yaml"))
    return cluster.Needs(jobs), jobs.job(*job)


def test_each_attempt_asks_for_twice_as_much(values, monkeypatch):
    """Of the margin times the smallest job's, since these are small."""
    needs, job = _needs(values, "extract", "dinov2_tiny", "frozen", "toy_willow")
    memory, minutes = cluster.LEAST
    for attempt, times in ((1, 1.5), (2, 3), (3, 6)):
        assert needs.megabytes(job, attempt) == math.ceil(times * memory / 1e6)
        assert needs.minutes(job, attempt) == math.ceil(times * minutes)
    monkeypatch.setenv("SEMCORR_MARGIN", "3")
    assert _needs(values, "extract", "dinov2_tiny", "frozen", "toy_willow")[0].megabytes(job, 1) == 3 * memory / 1e6


def test_a_slower_gpu_is_asked_for_longer(values, monkeypatch):
    """Fine-tuning for a thousand epochs more, of which nearly all the time are network passes."""
    values["tunings"]["last1"]["epochs"] = 100_000
    monkeypatch.setenv("SEMCORR_TFLOPS", "0.01")
    needs, job = _needs(values, "finetune", "dinov2_tiny", "last1")
    monkeypatch.setenv("SEMCORR_TFLOPS", "0.02")
    faster, _ = _needs(values, "finetune", "dinov2_tiny", "last1")
    assert needs.minutes(job, 1) == pytest.approx(2 * faster.minutes(job, 1), rel=0.02)
    for wrong in ("fast", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("SEMCORR_TFLOPS", wrong)
        with pytest.raises(UserError, match=f"SEMCORR_TFLOPS: '{wrong}'; allowed: a positive number, such as 5"):
            _needs(values, "finetune", "dinov2_tiny", "last1")


def test_a_gpu_takes_memory_of_its_node(values):
    """For CUDA's libraries, unless the job does not compute on it."""
    stages = params.read_yaml(Path(__file__).parents[2] / "dvc.yaml")["stages"].values()
    assert {stage["cmd"].split()[3] for stage in stages if "gpu" in stage.get("meta", {})} == {*cluster.ON_GPU}
    asked = {}
    for device in ("cpu", "auto"):
        values["runtime"]["device"] = device
        for job in (("extract", "dinov2_tiny", "frozen", "toy_willow"), ("report",)):
            needs, found = _needs(values, *job)
            asked[device, job[0]] = needs.megabytes(found, 1)
    assert asked["auto", "extract"] - asked["cpu", "extract"] > 0.9 * cluster.CUDA / 1e6
    assert asked["auto", "report"] == asked["cpu", "report"]


def test_data_of_unknown_size_ask_for_a_lot_until_they_are_fetched(values, tmp_path):
    """One's own data, which nobody has said where they lie."""
    source = {"kind": "path", "path": "mine"}
    values["datasets"]["toy_willow"]["sources"] = [source]
    needs, job = _needs(values, "extract", "dinov2_tiny", "frozen", "toy_willow")
    assert needs.megabytes(job, 1) == 1.5 * cluster.UNKNOWN[0] / 1e6
    assert needs.minutes(job, 1) == 1.5 * cluster.UNKNOWN[1]
    toy.write_pfwillow(tmp_path / "mine", seed=1, images={"all": 2})
    run_stages(values, "validate", "fetch")
    assert needs.megabytes(job, 1) == math.ceil(1.5 * cluster.LEAST[0] / 1e6)


def test_an_estimate_that_fails_stops_no_run(values, caplog):
    """Such as that of a network which this machine cannot build."""
    values["backbones"]["dinov2_tiny"]["overrides"] = {"no_such": 1}
    with caplog.at_level(logging.WARNING):
        needs, job = _needs(values, "extract", "dinov2_tiny", "frozen", "toy_willow")
        assert needs.megabytes(job, 1) == 1.5 * cluster.UNKNOWN[0] / 1e6
        assert needs.minutes(job, 2) == 3 * cluster.UNKNOWN[1]
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "extract dinov2_tiny frozen toy_willow: asks for as much as a job of unknown size"
    ]


def test_a_run_on_this_machine_estimates_nothing(clone):
    """Nor does it import torch for that; a dry run for a cluster shows what each job would ask for."""
    project = clone("smoke")
    local = project.run(sys.executable, "-X", "importtime", "-m", "snakemake", "-n")
    assert "rule extract:" in local
    assert not [line for line in local.splitlines() if line.startswith("import time:") and line.split()[-1] == "torch"]
    assert "mem_mb=" not in local
    assert "runtime=" not in local
    planned = project.run("snakemake", "--profile", "profiles/cluster", "-n")
    assert "mem_mb=2250" in planned
    assert "runtime=12" in planned
