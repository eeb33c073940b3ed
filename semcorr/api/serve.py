"""A local page to play with: points on one image, where each network finds them in another, and why.

The page keeps its own state, so that every tab has its own pair; the server keeps images by a hash of their pixels, and
the networks used last.
"""

import io
import threading
from pathlib import Path
from typing import Any

import flask
import numpy as np
from PIL import Image as PillowImage
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler

from semcorr.api.images import ImageMatches, Matcher, available, between, digest, open_image, points_on
from semcorr.api.matcher import Recent
from semcorr.errors import UserError, one_of
from semcorr.report import pictures

HOSTS = ["127.0.0.1", "localhost"]
LARGEST, QUESTION = 64_000_000, 100_000  # bytes of an upload, and of a question about it
HELD, NETWORKS = 24, 4  # images and networks kept in memory
MOST = 100  # points of a request
SHOWN, MAP = 1024, 224  # longer side, in pixels, of images and of similarity maps sent to the page
POLICY = "default-src 'self' 'unsafe-inline' data: blob:; frame-ancestors 'none'"


class Patient(WSGIRequestHandler):
    """A handler that gives up on a client that sends nothing for a while."""

    timeout = 30


class Held:
    """The images that pages have asked for, by a hash of their pixels; the last HELD, and those it was started with."""

    def __init__(self) -> None:
        self._started: dict[str, PillowImage.Image] = {}
        self._sent: Recent[PillowImage.Image] = Recent(HELD)
        self._lock = threading.Lock()

    def add(self, image: PillowImage.Image, *, started: bool = False) -> dict[str, Any]:
        """Keep an image, and say what a page needs to know of it."""
        key = digest(image)
        with self._lock:
            if started:
                self._started[key] = image
            else:
                self._sent.get(key, lambda: image)
        return {"id": key, "size": image.size}

    def __getitem__(self, key: str) -> PillowImage.Image:
        with self._lock:
            return self._started[key] if key in self._started else self._sent.get(key, _gone)


def _gone() -> PillowImage.Image:
    flask.abort(410, "this image is no longer held; choose it again")


def application(matcher: Matcher, images: dict[str, Path]) -> flask.Flask:
    """The page as a WSGI application, for one user with any number of tabs.

    Args:
        matcher: the network, weights and rule that the page starts with.
        images: files to start with, by "source" and "target".

    Raises:
        UserError: an image cannot be read.
    """
    app = flask.Flask("semcorr", template_folder=str(Path(__file__).parent / "templates"), static_folder=None)
    # Other sites open in the browser must not reach this one through a host name of theirs.
    app.config.update(TRUSTED_HOSTS=HOSTS, MAX_CONTENT_LENGTH=LARGEST)
    held = Held()
    first = {side: held.add(open_image(path), started=True) for side, path in images.items()}
    matchers: Recent[Matcher] = Recent(NETWORKS)
    lock = threading.Lock()  # one network, one question at a time

    def here() -> dict[str, list[str]]:
        found = available()
        if matcher.weights not in found.setdefault(matcher.backbone, []):
            found[matcher.backbone].append(matcher.weights)
        return found

    def load(backbone: str, weights: str) -> Matcher:
        known = here()
        one_of("backbone", backbone, list(known))  # a click downloads nothing
        one_of("weights", weights, known[backbone])
        return Matcher(backbone, weights, image_size=matcher.image_size)

    def chosen(asked: dict[str, Any]) -> Matcher:
        backbone, weights, rule = (str(asked.get(part)) for part in ("backbone", "weights", "rule"))
        if (backbone, weights) == (matcher.backbone, matcher.weights):
            return matcher.under(rule)
        return matchers.get((backbone, weights), lambda: load(backbone, weights)).under(rule)

    def asked() -> dict[str, Any]:
        flask.request.max_content_length = QUESTION
        try:
            values = flask.request.get_json()
        except RecursionError:
            raise UserError("the request is nested too deeply") from None
        if not isinstance(values, dict):
            raise UserError("the request is not a JSON object")
        return values

    def matched(asked: dict[str, Any]) -> ImageMatches:
        keys = (str(asked.get("source")), str(asked.get("target")))
        source, target = held[keys[0]], held[keys[1]]
        points = points_on(source, asked.get("points") or [])
        if points is None or len(points) > MOST:
            raise UserError(f"points: at most {MOST}")
        return between(chosen(asked), (source, target), points, keys=keys)

    @app.get("/")
    def page() -> str:
        start = {"backbone": matcher.backbone, "weights": matcher.weights, "rule": matcher.rule_name}
        rules = [name for name, rule in matcher.rules.items() if rule.search == "image"]  # no mask is known
        return flask.render_template("serve.html", start=start, here=here(), rules=rules, images=first)

    @app.post("/images")
    def upload() -> dict[str, Any]:
        if flask.request.mimetype != "application/octet-stream":  # which another site's form cannot send
            flask.abort(415, "send the file itself, as application/octet-stream")
        return held.add(open_image(io.BytesIO(flask.request.get_data())))

    @app.get("/images/<key>")
    def image(key: str) -> flask.Response:
        found = held[key]
        small = found if max(found.size) <= SHOWN else pictures.fit(found, SHOWN)
        return flask.Response(pictures.encode(small), mimetype="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.post("/match")
    def match() -> dict[str, Any]:
        question = asked()  # read before the lock is taken, so that a slow client holds up nobody
        with lock:
            return matched(question).to_dict()

    @app.post("/map")
    def similarity_map() -> dict[str, Any]:
        question = asked()
        with lock:
            matches = matched(question)
            heatmap = matches.heatmaps()[-1]
        size = pictures.fit(matches.target, min(MAP, max(matches.target.size))).size
        return {
            "target": matches.target_points[-1].tolist(),
            "similarity": float(matches.similarity[-1]),
            "range": [float(np.min(heatmap)), float(np.max(heatmap))],
            "map": pictures.data_uri(pictures.overlay(heatmap, matches.target_grid, size)),
        }

    @app.post("/picture")
    def picture() -> flask.Response:
        question = asked()
        with lock:
            drawn = matched(question).picture()
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG")
        return flask.Response(buffer.getvalue(), mimetype="image/png")

    @app.after_request
    def guarded(response: flask.Response) -> flask.Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.errorhandler(UserError)
    def wrong(error: UserError) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, 422

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[dict[str, str], int]:
        if error.code == 413:
            most = flask.request.max_content_length or LARGEST
            return {"error": f"the request is too large; allowed: {most / 1e6:g} MB"}, 413
        return {"error": error.description or error.name}, error.code or 500

    return app
