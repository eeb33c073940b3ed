"""What would run, and its cost, against counting by hand and against what was then written."""

import json

import pytest

from semcorr import cli, params
from semcorr.artifacts.files import write_json
from semcorr.engine import graph, plan
from semcorr.engine.current import Current


@pytest.fixture
def experiment(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]
    write_json(tmp_path / "params.yaml", values)
    return values


def _pending() -> dict[str, str]:
    return Current(graph.Graph(params.load())).stale


def _run(*words: str) -> None:
    cli.run_stage(cli.parser().parse_args(list(words)))


def test_why_a_job_would_run(experiment, tmp_path):
    everything = _pending()
    jobs = [job for job in graph.Graph(params.load()).jobs() if job.stage != "validate"]
    assert len(everything) == len(jobs)
    assert everything["fetch@toy_willow"] == "data/toy_willow/images.parquet is missing"
    _run("fetch", "toy_willow")
    _run("weights", "dinov2_tiny", "frozen")
    left = _pending()
    assert everything.keys() - left.keys() == {"fetch@toy_willow", "weights@dinov2_tiny-frozen"}
    experiment["backbones"]["dinov2_tiny"]["weights"]["seed"] = 8
    write_json(tmp_path / "params.yaml", experiment)
    why = "changed in params.yaml: backbones.dinov2_tiny.weights.seed"
    assert _pending()["weights@dinov2_tiny-frozen"] == why
    assert "fetch@toy_willow" not in _pending()


def test_operations_of_a_vit_by_hand(experiment):
    """Patch embedding, and in each block four d x d and two d x 4d products a token, and two n x n x d ones."""
    costs = plan.Costs(graph.Graph(params.load()))
    trunk, tail, _, values = costs._pass("dinov2_tiny", (112, 112))
    cells, width = 8 * 8, 48
    tokens = cells + 1
    block = 2 * tokens * (4 * width**2 + 2 * 4 * width**2) + 2 * 2 * tokens**2 * width
    embedding = 2 * cells * 14 * 14 * 3 * width
    assert trunk == pytest.approx(embedding + 2 * block, rel=0.01)  # three blocks, of which the last is tuned
    assert tail == pytest.approx(block, rel=0.01)
    assert values == cells * width


def test_disk_against_what_is_written(experiment):
    _run("fetch", "toy_willow")
    _run("weights", "dinov2_tiny", "frozen")
    _run("extract", "dinov2_tiny", "frozen", "toy_willow")
    plan_of = graph.Graph(params.load())
    costs = plan.Costs(plan_of)
    for cell in (("weights", "dinov2_tiny", "frozen"), ("extract", "dinov2_tiny", "frozen", "toy_willow")):
        job = plan_of.job(*cell)
        written = next(iter(job.outputs.values())).stat().st_size
        assert costs.of(job).disk == pytest.approx(written, rel=0.35), cell  # images differ in shape; headers


def test_sizes_of_drawn_data_before_they_are_drawn(experiment):
    names = ("toy_willow", "toy_spair_val")
    before = [plan.Costs(graph.Graph(params.load())).sizes[name] for name in names]
    for name, expected in zip(names, before, strict=True):
        _run("fetch", name)
        drawn = plan.Costs(graph.Graph(params.load())).sizes[name]
        assert (expected.known, drawn.known) == (False, True)
        for count in ("images", "pairs", "keypoints"):  # few have no partner that shows as much of the object
            assert getattr(expected, count) == pytest.approx(getattr(drawn, count), rel=0.2)


def test_on_the_command_line(experiment, tmp_path, capsys):
    experiment["datasets"]["toy_willow"]["sources"] = [{"kind": "path", "path": "mine"}]
    write_json(tmp_path / "params.yaml", experiment)
    cli.main(["plan", "--tflops", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:13]] == [*(s for s in graph.STAGES if s != "validate"), "all"]
    assert lines[1].split()[1] == "3"
    assert "*" in lines[3]  # nobody knows how large one's own data are before they are read
    cli.main(["plan", "--tflops", "1", "--jobs"])
    assert "match dinov2_tiny last1 toy_willow argmax" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["plan", "--tflops", "0"])
    assert "--tflops 0.0: allowed: more than 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["plan", "nope"])
    assert "no such preset" in capsys.readouterr().err
