"""The report: what it calls best, and what a browser makes of it; and the page where people click."""

import shutil
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from semcorr import params
from semcorr.errors import UserError
from semcorr.report import page
from semcorr.report import tables as report_tables

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; on Debian: apt install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


@pytest.fixture
def browser():
    """Headless Chromium, with no network but this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Watched:
    """A page of a browser, and everything that it complained of or asked for."""

    def __init__(self, browser, **options):
        self.page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))


def _pairs(rates: np.ndarray, seed: int) -> pd.DataFrame:
    """Ten keypoints a pair, each right with its pair's rate."""
    hits = np.random.default_rng(seed).binomial(10, rates)
    return pd.DataFrame({"pair": np.char.mod("%d", np.arange(len(rates))), "num_keypoints": 10, "PCK@0.10": hits})


def _cells(tables: dict[str, pd.DataFrame]) -> dict:
    """As much of the cells' JSON as a leaderboard reads."""
    cells = {}
    for name, table in tables.items():
        mean = float(table["PCK@0.10"].sum() / table["num_keypoints"].sum())
        average = {"PCK@0.10": {"mean": mean, "std": 0.0, "ci95": [mean - 0.01, mean + 0.01]}}
        overall = {f"overall_{one}": average for one in ("keypoint", "image", "category")}
        cells[name] = {**overall, "references": {"bbox": overall}}
    return cells


@pytest.fixture
def settings(smoke):
    values = {**smoke, "evaluate": {**smoke["evaluate"], "thresholds": [0.10], "bootstrap": 500}}
    return params.validate(values, "smoke")


def test_best_is_marked_where_the_difference_is_real(settings):
    """Two that are right as often, on other pairs, share the mark; one that is far behind does not have it."""
    rates = np.random.default_rng(0).uniform(0.3, 0.8, 200)
    tables = {"b/one/d/r": _pairs(rates, 7), "b/worse/d/r": _pairs(rates - 0.2, 8)}
    tables["b/other/d/r"] = tables["b/one/d/r"].assign(**{"PCK@0.10": np.roll(tables["b/one/d/r"]["PCK@0.10"], 1)})
    board = report_tables.leaderboard(_cells(tables), tables, "d", settings)
    assert {row["weights"] for row in board if row["best"]} == {"one", "other"}
    assert board[2]["weights"] == "worse"
    assert board[2]["behind"]["interval"][1] < -15
    assert "may be chance" in page.verdict(board, "PCK@0.10")
    del tables[board[1]["name"]]
    board = report_tables.leaderboard(_cells(tables), tables, "d", settings)
    assert [row["best"] for row in board] == [True, False]
    assert "The difference is real: it leads the next, b worse r, by" in page.verdict(board, "PCK@0.10")


def test_rows_on_different_pairs_are_refused(settings):
    tables = {"b/w/d/r": _pairs(np.full(20, 0.5), 0), "b/v/d/r": _pairs(np.full(19, 0.5), 0)}
    with pytest.raises(UserError, match="not scored on the same pairs"):
        report_tables.leaderboard(_cells(tables), tables, "d", settings)


def test_a_chart_has_the_same_bytes_each_time_and_no_colour_of_its_own_for_text():
    series = [("a <b>", [0, 1], [0, 100]), ("c", [0, 1], [50, 20])]
    first = page.chart(series, "x & y", "y")
    assert first == page.chart(series, "x & y", "y")
    assert page.INK not in first
    assert "currentColor" in first
    assert "<b>" not in first


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_a_drawn_map_is_the_one_that_is_matched_by(sampling):
    import torch

    from semcorr import matching
    from semcorr.report.gallery import heatmap

    rng = np.random.default_rng(0)
    source, target = (rng.normal(size=(*shape, 8)).astype(np.float32) for shape in ((5, 7), (4, 6)))
    for cell in ([0.0, 0.0], [6.4, 4.4], [-0.3, 2.25], [3.7, 1.2], [6.0, 4.0]):
        maps = [matching.normalise(torch.from_numpy(one)) for one in (source, target)]
        descriptor = matching.sample(maps[0], torch.tensor([cell]), sampling)
        expected = matching.heatmaps(descriptor, maps[1])[0].numpy()
        np.testing.assert_allclose(heatmap(source, np.array(cell), target, sampling), expected, atol=1e-5)


@pytest.mark.pipeline
@needs_browser
def test_the_report_in_a_browser(finished, browser):
    path = finished.root / "metrics/smoke/report.html"
    watched = Watched(browser, viewport={"width": 1280, "height": 900}, color_scheme="light")
    seen = watched.page
    seen.goto(path.as_uri())
    seen.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    pictures = seen.evaluate(
        """Promise.all([...document.images].map(async (image) => {
            image.loading = 'eager'; await image.decode(); return image.naturalWidth; }))"""
    )
    assert len(pictures) == 2 * 8 * 5  # weights, categories, three pairs and two maps
    assert min(pictures) > 100
    assert seen.locator("section svg[role=img]").count() == 1 + 2  # PCK over thresholds, and two of training
    assert "PCK@0.10" in seen.locator(".verdict").inner_text()

    def column(name: str) -> list[float]:
        heads = seen.locator("table.sortable th").all_inner_texts()
        index = next(i for i, head in enumerate(heads) if head.startswith(name))
        cells = seen.locator(f"table.sortable tbody td:nth-child({index + 1})")
        return [float(cell.get_attribute("data-value")) for cell in cells.all()]

    assert column("PCK@0.10") == sorted(column("PCK@0.10"), reverse=True)
    seen.get_by_role("button", name="per image").click()
    assert column("per image") == sorted(column("per image"), reverse=True)
    seen.get_by_role("button", name="per image").click()
    assert column("per image") == sorted(column("per image"))

    background = "getComputedStyle(document.body).backgroundColor"
    light = seen.evaluate(background)
    seen.emulate_media(color_scheme="dark")
    assert seen.evaluate(background) != light
    seen.set_viewport_size({"width": 390, "height": 800})
    assert seen.evaluate("document.documentElement.scrollWidth") == 390  # wide tables scroll by themselves
    assert watched.complaints == []
    assert {url.split(":")[0] for url in watched.requests} <= {"file", "data"}


@pytest.mark.pipeline
def test_the_notebook_runs(finished):
    output = finished.run(sys.executable, "workflow/notebooks/explore.py")
    assert "median error" in output
    assert " against " in output.splitlines()[0]
    assert output.splitlines()[1].startswith("PCK@0.10")


@needs_browser
def test_a_click_finds_the_match(smoke, tmp_path, monkeypatch, browser):
    """Both images are the same one, so the answer is the point itself, to half a cell."""
    from PIL import Image as PillowImage
    from werkzeug.serving import make_server

    from semcorr import cli
    from semcorr.api.images import Matcher
    from semcorr.api.serve import application
    from semcorr.artifacts.files import write_json

    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "params.yaml", {**smoke, "grid": {**smoke["grid"], "backbones": ["dinov2_tiny"]}})
    cli.run_stage(cli.parser().parse_args(["weights", "dinov2_tiny", "frozen"]))
    colours = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    PillowImage.fromarray(colours).resize((120, 90), PillowImage.Resampling.NEAREST).save("a.png")
    (tmp_path / "text.png").write_text("no image")
    matcher = Matcher()
    app = application(matcher, {"source": tmp_path / "a.png"})
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        watched = Watched(browser, viewport={"width": 1000, "height": 700})
        seen = watched.page
        seen.goto(f"http://127.0.0.1:{server.server_port}/")
        stage = seen.locator("#source-image")
        stage.click(position={"x": 20, "y": 20})
        seen.wait_for_function("document.querySelector('#answer.error')")
        assert "choose a target image first" in seen.locator("#answer").inner_text()
        assert len(watched.complaints) == 1  # the browser logs an answer of 422
        watched.complaints.clear()

        seen.set_input_files("#target-file", tmp_path / "a.png")
        seen.wait_for_function("document.querySelector('#target-image').naturalWidth === 120")
        box = stage.bounding_box()
        stage.click(position={"x": box["width"] * 0.7, "y": box["height"] * 0.4})
        seen.wait_for_function(
            "document.querySelector('#map').naturalWidth > 0 && !document.querySelector('#map').hidden"
        )
        there = [
            float(seen.locator("#target-dot").evaluate(f"(dot) => parseFloat(dot.style.{side})"))
            for side in ("left", "top")
        ]
        grid = matcher.features(PillowImage.open("a.png").convert("RGB"))[1]
        half = [50 * grid.stride / side for side in grid.resized_size[::-1]]
        assert abs(there[0] - 70) <= half[0] + 0.5
        assert abs(there[1] - 40) <= half[1] + 0.5
        assert "cosine similarity" in seen.locator("#answer").inner_text()
        assert watched.complaints == []

        seen.set_input_files("#target-file", tmp_path / "text.png")
        seen.wait_for_function("document.querySelector('#answer.error')")
        assert "not a readable image" in seen.locator("#answer").inner_text()
        assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in watched.requests)
    finally:
        server.shutdown()
    client = app.test_client()
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400
    assert client.post("/image/source", data=b"x", content_type="text/plain").status_code == 415
    assert client.get("/match?x=500&y=1").status_code == 422
    assert client.get("/match").status_code == 422
