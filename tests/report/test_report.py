"""The report: what it calls best, and what a browser makes of it; and the page where people click."""

import colorsys
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from semcorr import params
from semcorr.errors import UserError
from semcorr.report import charts, gallery, page
from semcorr.report import tables as report_tables


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
        more = {"mean": mean, "ci95": [mean, mean]}
        further = {
            "off_object": None,
            "geometry_aware": None,
            "dagger": {"PCK@0.10": more},
            "confidence": {"kap": more},
        }
        cells[name] = {**overall, **further, "references": {"bbox": overall}}
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
    names = {name: page.label(name, ["backbone", "weights", "rule"]) for name in tables}
    assert "may be chance" in page.verdict(board, "PCK@0.10", names)
    del tables[board[1]["name"]]
    board = report_tables.leaderboard(_cells(tables), tables, "d", settings)
    assert [row["best"] for row in board] == [True, False]
    assert "The difference is real: it leads the next, b worse r, by" in page.verdict(board, "PCK@0.10", names)


def test_rows_on_different_pairs_are_refused(settings):
    tables = {"b/w/d/r": _pairs(np.full(20, 0.5), 0), "b/v/d/r": _pairs(np.full(19, 0.5), 0)}
    with pytest.raises(UserError, match="not scored on the same pairs"):
        report_tables.leaderboard(_cells(tables), tables, "d", settings)


def test_a_chart_has_the_same_bytes_each_time_and_no_colour_of_its_own_for_text():
    series = [("a <b>", [0, 1], [0, 100]), ("c", [0, 1], [50, 20])]
    first = charts.chart(series, "x & y", "y", ["a", "c"])
    assert first == charts.chart(series, "x & y", "y", ["a", "c"])
    assert charts.INK not in first
    assert "currentColor" in first
    assert "<b>" not in first


def test_colours_of_weights_are_never_those_of_right_and_wrong():
    """Hue: none within 35 degrees of green or red, and none is given twice."""
    for count in (1, 3, 6, 12):
        found = charts.colours(count)
        assert len(set(found)) == count
        for colour in found:
            red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
            hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
            assert saturation < 0.3 or 20 < 360 * hue < 85 or 160 < 360 * hue < 345, colour


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
def test_the_report_in_a_browser(finished, watch):
    path = finished.root / "metrics/smoke/report.html"
    watched = watch(viewport={"width": 1280, "height": 900}, color_scheme="light")
    seen = watched.page
    seen.goto(path.as_uri())
    widths = seen.evaluate(
        """Promise.all([...document.querySelectorAll("svg image")].map(async (one) => {
            const image = new Image(); image.src = one.getAttribute("href");
            await image.decode(); return image.naturalWidth; }))"""
    )
    heads, weights = seen.locator(".together h4"), 2
    pairs, categories = heads.count(), heads.filter(has_text="median").count()
    assert pairs > categories == seen.locator("table.heat").first.locator("tbody tr").count()
    assert len(widths) == 2 * pairs + weights * categories  # each image once; a map of each median pair
    assert min(widths) > 50
    assert seen.locator("svg.pair").count() == weights * (1 + pairs + categories)  # also of the typical pair, above
    assert seen.locator("section svg[role=img]:not(.pair)").count() == 2 + 2 + 1  # PCK, risk, two of training, layers
    measured = json.loads((finished.root / "metrics/smoke/cells/dinov2_tiny/layers/toy_spair_test.json").read_text())
    key = [100 * row["overall_keypoint"]["PCK@0.10"]["mean"] for row in measured["layers"] if row["facet"] == "key"]
    shown = [row.locator("td").nth(2).inner_text() for row in seen.locator("#layers tbody tr").all()]
    assert [text.split()[0] for text in shown] == [f"{value:.1f}" for value in key]
    assert "PCK@0.10" in seen.locator(".verdict").inner_text()
    assert seen.evaluate("document.documentElement.scrollWidth") == 1280
    bars = seen.locator("td.bar span").all()
    assert len({bar.bounding_box()["x"] for bar in bars}) == 1
    assert seen.locator("table.board th", has_text="backbone").count() == 0  # there is one, said above

    seen.locator(".zoom").nth(3).click()
    assert seen.locator("dialog svg.pair").bounding_box()["width"] > 900
    seen.keyboard.press("Escape")
    assert not seen.locator("dialog").is_visible()

    def column(name: str) -> list[float]:
        return [float(cell.get_attribute("data-value")) for cell in seen.locator(f"td[data-head='{name}']").all()]

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
    assert seen.evaluate("document.documentElement.scrollWidth") == 390
    assert seen.locator("table.board").bounding_box()["width"] <= 390  # cards, nothing to scroll
    assert watched.complaints == []
    assert {url.split(":")[0] for url in watched.requests} <= {"file", "data"}


def _scores(rates: list[tuple[str, int, int]]) -> pd.DataFrame:
    """Pairs of one category: name, correct and all keypoints."""
    return pd.DataFrame(rates, columns=["pair", "PCK@0.10", "num_keypoints"]).assign(category="cat")


def test_pairs_that_stand_for_a_category_have_enough_keypoints():
    """By hand: of those with five or more, rates 1, 5/6, 3/5, 1/5 and 0; more keypoints come first among equals."""
    scores = _scores(
        [
            ("a", 1, 1),
            ("b", 0, 2),
            ("c", 5, 5),
            ("d", 8, 8),
            ("e", 5, 6),
            ("f", 3, 5),
            ("g", 1, 5),
            ("h", 0, 5),
            ("i", 0, 9),
        ]
    )
    rows = gallery.chosen(scores, "PCK@0.10")
    assert [(row["which"], row["pair"]) for row in rows] == [("best", "d"), ("median", "f"), ("worst", "i")]
    few = gallery.chosen(_scores([("a", 1, 1), ("b", 1, 2)]), "PCK@0.10")
    assert [(row["which"], row["pair"]) for row in few] == [("median", "b")]
    assert (
        gallery.best_rule({"r": scores, "s": scores.assign(**{"PCK@0.10": scores["num_keypoints"]})}, "PCK@0.10") == "s"
    )


def test_tables_for_a_paper_say_what_the_cells_say(settings):
    """LaTeX and Markdown have the same cells; every row has as many as the head; the best and its ties are bold."""
    rates = np.random.default_rng(0).uniform(0.3, 0.8, 200)
    tables = {"b_1/one/d/r": _pairs(rates, 7), "b_1/worse/d/r": _pairs(rates - 0.2, 8)}
    cells = _cells(tables)
    for cell in cells.values():
        cell.update(protocol={"reference": "bbox"}, num_pairs=200, num_keypoints=2000)
    boards = {"d": report_tables.leaderboard(cells, tables, "d", settings)}
    marked = report_tables.markdown(boards, cells, settings)
    written = report_tables.latex(boards, cells, settings)
    rows = [line.strip("| \n").split(" | ") for line in marked.splitlines() if line.startswith("| ")]
    typeset = [line.strip().removesuffix(r" \\").split(" & ") for line in written.splitlines() if line.endswith(r"\\")]
    assert [len(row) for row in typeset] == [len(row) for row in rows]

    def plain(text: str) -> str:
        return text.replace("**", "").replace(r"\textbf{", "").replace("}", "").replace("\\", "")

    assert [[plain(cell) for cell in row] for row in typeset] == [[plain(cell) for cell in row] for row in rows]
    assert r"b\_1" in written
    assert written.count("{") == written.count("}")
    bold = f"{100 * cells['b_1/one/d/r']['overall_keypoint']['PCK@0.10']['mean']:.1f}"
    assert (written.count(r"\textbf"), rf"\textbf{{{bold}}}" in written) == (1, True)


NOTEBOOK = Path(__file__).parents[2] / "workflow/notebooks/explore.ipynb"


def _pictures(notebook: dict) -> int:
    """How many outputs of a notebook are pictures; none is an error."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs)


@pytest.mark.pipeline
def test_the_notebook_runs(finished):
    path = finished.root / NOTEBOOK.relative_to(NOTEBOOK.parents[2])
    kept = json.loads(path.read_text())
    for cell in kept["cells"]:
        cell |= {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
    path.write_text(json.dumps(kept))
    finished.run("jupyter", "execute", "--inplace", str(path))
    assert _pictures(json.loads(path.read_text())) == 5


def test_the_notebook_shows_its_pictures():
    """As it is in the repository: run from top to bottom, with its pictures, and small."""
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert _pictures(notebook) == 5
