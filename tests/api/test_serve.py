"""The page where people click, by real clicks in a browser; and what the server refuses."""

import base64
import io
import json
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image as PillowImage
from werkzeug.serving import make_server

from semcorr import cli, match_images
from semcorr.api.images import Matcher
from semcorr.api.serve import LARGEST, application
from semcorr.artifacts.files import write_json

SIZE = 120, 90
FILE = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def project(smoke, tmp_path, monkeypatch) -> Path:
    """A project whose network has two sets of weights here, and two pictures of noise."""
    monkeypatch.chdir(tmp_path)
    grid = {**smoke["grid"], "backbones": ["dinov2_tiny"], "baselines": ["frozen", "other"]}
    grid["weights"] = [*grid["baselines"], *grid["tunings"]]
    baselines = {**smoke["baselines"], "other": {"kind": "random", "seed": 7}}
    write_json(tmp_path / "params.yaml", {**smoke, "grid": grid, "baselines": baselines})
    for weights in ("frozen", "other"):
        cli.run_stage(cli.parser().parse_args(["weights", "dinov2_tiny", weights]))
    for seed, name in enumerate(("a.png", "b.png")):
        colours = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
        PillowImage.fromarray(colours).resize(SIZE, PillowImage.Resampling.NEAREST).save(name)
    Path("text.png").write_text("no image")
    return tmp_path


@pytest.fixture
def served(project):
    """A function that serves the page with some images, and returns its address."""
    servers = []

    def serve(**images: str) -> str:
        server = make_server(
            "127.0.0.1", 0, application(Matcher(), {k: Path(v) for k, v in images.items()}), threaded=True
        )
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield serve
    for server in servers:
        server.shutdown()


def _at(dot) -> list[float]:
    """Where a dot stands, in pixels of its image."""
    shares = dot.evaluate("(dot) => [parseFloat(dot.style.left), parseFloat(dot.style.top)]")
    return [share / 100 * side - 0.5 for share, side in zip(shares, SIZE, strict=True)]


def _idle(seen, rows: int) -> None:
    """Wait until every point has its answers."""
    seen.wait_for_function(
        f"() => document.querySelectorAll('#list tbody tr').length === {rows} && "
        "[...document.querySelectorAll('#list td')].every((cell) => cell.textContent)"
    )


def _found(source: str, target: str, point: list[float], weights: str = "frozen", rule: str = "argmax") -> str:
    """Where a point is found, as the page's table writes it."""
    matches = match_images(source, target, [point], backbone="dinov2_tiny", weights=weights, rule=rule)
    return ", ".join(f"{value:.1f}" for value in matches.to_dict()["matches"][0]["target"])


class Stage:
    """The source on the page; places are fractions of its width and height."""

    def __init__(self, seen):
        self.seen, self.image = seen, seen.locator(".ask .stage img")

    def place(self, x: float, y: float) -> tuple[float, float]:
        box = self.image.bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def click(self, x: float, y: float) -> None:
        self.seen.mouse.click(*self.place(x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.seen.mouse.move(*self.place(*start))
        self.seen.mouse.down()
        self.seen.mouse.move(*self.place(*end), steps=3)
        self.seen.mouse.up()


def test_points_are_found_dragged_swapped_and_saved(served, watch):
    """Both images are the same one, so each answer is the point itself, to half a cell."""
    watched = watch(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    seen = watched.page
    seen.goto(served(source="a.png"))
    stage = Stage(seen)
    assert "Drop the target image here" in seen.locator("[data-network='0'] .drop").inner_text()
    stage.click(0.2, 0.2)
    seen.wait_for_function("() => document.querySelector('#answer.error')")
    assert "choose a target image first" in seen.locator("#answer").inner_text()
    seen.locator("[data-network='0'] input[type=file]").set_input_files("a.png")
    _idle(seen, 1)
    stage.click(0.7, 0.4)
    _idle(seen, 2)
    grid = Matcher().features(PillowImage.open("a.png").convert("RGB"))[1]
    half = [0.5 * grid.stride * side / resized for side, resized in zip(SIZE, grid.resized_size[::-1], strict=True)]

    def close(found: list[float], expected: tuple[float, float]) -> bool:
        return all(abs(a - b) <= h + 1 for a, b, h in zip(found, expected, half, strict=True))

    dots = seen.locator("[data-network='0'] span.dot:not(.live)")
    assert [dot.inner_text() for dot in dots.all()] == ["1", "2"]
    assert close(_at(dots.nth(1)), (0.7 * 120, 0.4 * 90))

    stage.drag((0.7, 0.4), (0.3, 0.8))
    seen.wait_for_function("() => parseFloat(document.querySelectorAll('.ask button.dot')[1].style.left) < 40")
    _idle(seen, 2)
    seen.wait_for_function("() => document.querySelector('#answer').textContent === ''")
    assert close(_at(dots.nth(1)), (0.3 * 120, 0.8 * 90))

    live = seen.locator("[data-network='0'] .live")
    seen.mouse.move(*stage.place(0.9, 0.1))
    wanted = (0.9 * 120, 0.1 * 90)
    seen.wait_for_function("() => Math.abs(parseFloat(document.querySelector('.live').style.left) - 90) < 12")
    assert close(_at(live), wanted)
    assert seen.locator("[data-network='0'] .map").evaluate("(map) => !map.hidden && map.naturalWidth > 0")

    def saved_from(button: str, name: str):
        """The download of one network; each network's has its own name, and they arrive one after the other."""
        with seen.expect_download(lambda download: download.suggested_filename == name) as saved:
            seen.get_by_role("button", name=button).click()
        return saved.value.path()

    said = json.loads(Path(saved_from("save JSON", "matches-dinov2_tiny-frozen-argmax.json")).read_text())
    assert [len(said["matches"]), said["weights"], said["source_width"]] == [2, "frozen", 120]
    np.testing.assert_allclose(said["matches"][1]["target"], _at(dots.nth(1)), atol=0.2)
    with PillowImage.open(saved_from("save picture", "matches-dinov2_tiny-frozen-argmax.png")) as picture:
        assert (picture.format, picture.width > picture.height) == ("PNG", True)

    before = [_at(dot) for dot in dots.all()]
    seen.get_by_role("button", name="swap images").click()
    _idle(seen, 2)
    np.testing.assert_allclose([_at(dot) for dot in seen.locator(".ask button.dot").all()], before, atol=0.2)
    seen.locator(".ask button.dot").first.dblclick()
    _idle(seen, 1)
    seen.get_by_role("button", name="clear points").click()
    assert seen.locator(".dot:not(.live)").count() == 0
    assert watched.complaints == []
    assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in watched.requests)


def test_networks_stand_side_by_side_and_menus_choose_them(served, watch):
    watched = watch(viewport={"width": 390, "height": 800})
    seen = watched.page
    seen.goto(served(source="a.png", target="b.png"))
    assert seen.locator("[data-network='1']").is_visible()  # there is more than one set of weights, so both are shown
    stage = Stage(seen)
    stage.click(0.5, 0.5)
    _idle(seen, 1)
    heads = seen.locator("#list th").all_inner_texts()
    assert any("frozen, argmax" in head for head in heads)
    assert any("other, argmax" in head for head in heads)

    def answer(rule: str, weights: str) -> str:
        return _found("a.png", "b.png", point, weights, rule)

    point = _at(seen.locator(".ask button.dot"))
    cells = seen.locator("#list td").all_inner_texts()
    assert [cells[1], cells[3]] == [answer("argmax", "frozen"), answer("argmax", "other")]
    seen.get_by_label("rule of network 2").select_option("softargmax")
    _idle(seen, 1)
    assert seen.locator("#list td").all_inner_texts()[3] == answer("softargmax", "other")
    seen.get_by_label("weights of network 1").select_option("other")
    _idle(seen, 1)
    assert seen.locator("#list td").all_inner_texts()[1] == answer("argmax", "other")
    assert seen.evaluate("document.documentElement.scrollWidth") == 390
    seen.get_by_role("button", name="one network").click()
    assert not seen.locator("[data-network='1']").is_visible()
    assert watched.complaints == []


def test_each_tab_has_its_own_pair_and_a_bad_file_is_named(served, watch):
    address = served(source="a.png", target="b.png")
    tabs = [watch(viewport={"width": 1000, "height": 700}).page for _ in range(2)]
    for tab in tabs:
        tab.goto(address)
    before = tabs[0].locator(".ask .stage img").get_attribute("src")
    data = base64.b64encode(Path("b.png").read_bytes()).decode()
    dropped = tabs[1].evaluate_handle(
        """(data) => { const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), files = new DataTransfer();
        files.items.add(new File([bytes], "b.png", { type: "image/png" })); return files; }""",
        data,
    )
    tabs[1].dispatch_event(".ask", "drop", {"dataTransfer": dropped})
    tabs[1].wait_for_function(f"() => document.querySelector('.ask .stage img').getAttribute('src') !== '{before}'")
    for tab, source in zip(tabs, ("a.png", "b.png"), strict=True):  # each is answered about its own pair
        Stage(tab).click(0.3, 0.6)
        _idle(tab, 1)
        point = _at(tab.locator(".ask button.dot"))
        assert tab.locator("#list td").all_inner_texts()[1] == _found(source, "b.png", point)
    tabs[0].reload()
    assert tabs[0].locator(".ask .stage img").get_attribute("src") == before
    tabs[1].locator(".ask input[type=file]").set_input_files("text.png")
    tabs[1].wait_for_function("() => document.querySelector('#answer.error')")
    assert "text.png: " in tabs[1].locator("#answer").inner_text()
    assert "not a readable image" in tabs[1].locator("#answer").inner_text()


def test_a_client_that_stalls_holds_up_nobody(served):
    address = served(source="a.png", target="b.png")
    host, port = address.removeprefix("http://").strip("/").split(":")
    sent = [
        requests.post(f"{address}images", Path(name).read_bytes(), headers=FILE, timeout=20).json()["id"]
        for name in ("a.png", "b.png")
    ]
    asked = {"backbone": "dinov2_tiny", "weights": "frozen", "rule": "argmax", "source": sent[0], "target": sent[1]}
    with socket.create_connection((host, int(port))) as stalled:
        head = f"POST /match HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
        stalled.sendall(head.encode())
        answered = requests.post(f"{address}match", json={**asked, "points": [[5, 5]]}, timeout=20)
    assert len(answered.json()["matches"]) == 1


def test_what_the_server_refuses(project):
    app = application(Matcher(), {"source": Path("a.png"), "target": Path("b.png")})
    client = app.test_client()
    page = client.get("/")
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400
    assert client.get("/", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.post("/images", data=b"x", content_type="text/plain").status_code == 415
    large = client.post("/images", data=io.BytesIO(bytes(LARGEST + 1)), content_type="application/octet-stream")
    assert (large.status_code, large.json["error"]) == (413, "the request is too large; allowed: 64 MB")
    sent = [
        client.post("/images", data=Path(name).read_bytes(), content_type="application/octet-stream").json["id"]
        for name in ("a.png", "b.png")
    ]
    asked = {"backbone": "dinov2_tiny", "weights": "frozen", "rule": "argmax", "source": sent[0], "target": sent[1]}
    assert client.post("/match", json={**asked, "points": [[5, 5]]}).status_code == 200
    wrong = {
        "lies outside the source image": {"points": [[500, 1]]},
        "at most 100": {"points": [[1, 1]] * 101},
        "expected (N, 2)": {"points": []},
        "rule": {"points": [[1, 1]], "rule": "nothing"},
        "weights": {"points": [[1, 1]], "weights": "last9"},
        "backbone": {"points": [[1, 1]], "backbone": "../x"},
        "'dinov2_l14'; allowed: dinov2_tiny": {"points": [[1, 1]], "backbone": "dinov2_l14"},  # known, but not here
    }
    for word, change in wrong.items():
        said = client.post("/match", json=asked | change)
        assert said.status_code == 422, word
        assert word in said.json["error"]
    assert client.post("/match", json=[1]).status_code == 422
    assert client.post("/match", json={**asked, "points": [[1, 1]] * 50_000}).status_code == 413
    huge = json.dumps({**asked, "points": [[1, 1]]}).replace("[[1, 1]]", f"[[1{'0' * 400}, 1]]")
    for body, word in {
        huge: "expected (N, 2) numbers",
        "[" * 40_000 + "]" * 40_000: "nested too deeply",
    }.items():
        said = client.post("/match", data=body, content_type="application/json")
        assert said.status_code == 422, word
        assert word in said.json["error"]
    assert client.post("/match", data="{}", content_type="text/plain").status_code == 415
    assert client.post("/match", json={**asked, "source": "gone", "points": [[1, 1]]}).status_code == 410
