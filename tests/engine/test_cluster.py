"""Past one machine: a real single-node Slurm, and results shared through a DVC remote."""

import os
import shutil
import socket
import subprocess
import time

import pytest
from conftest import Clone

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
JobAcctGatherType=jobacct_gather/none
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
    """A run of a profile that ships, asking for less than a cluster has."""
    networks = [
        f"{rule}:{what}"
        for rule in ("extract", "trunk", "finetune", "adapt", "match")
        for what in ("gpu=0", "mem_mb=1500")
    ]
    ask = ["slurm_partition=debug", "mem_mb=1500", "runtime=1", "gpu=0"]
    options = ["--profile", f"profiles/{profile}", "--cores", "2", "--default-resources", *ask, "--set-resources"]
    return ["snakemake", *options, *networks, "--retries", "0", "--seconds-between-status-checks", "1", *more]


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
    """As the profile ships: this node has neither GPU nor memory enough and refuses, but has been asked right."""
    (finished.root / "features/dinov2_tiny/frozen/toy_spair_test.h5").unlink()
    options = ["--seconds-between-status-checks", "1", *(SLURM if profile == "slurm" else [])]
    finished.run("snakemake", "--profile", f"profiles/{profile}", "--retries", "0", *options, expect=1)
    asked = [line for line in slurm.read_text().splitlines() if line.startswith("sbatch")]
    assert len(asked) == 1
    words = asked[0].replace("=", " ").split()
    for option, value in (("--gpus", "1"), ("--mem", "16000")):
        assert words[words.index(option) + 1] == value
    assert "120" in words  # minutes
