"""A local page: a click on the left image shows the matching point on the right one, and a similarity map."""

import io
import threading
from pathlib import Path
from typing import Any

import flask
import numpy as np

from semcorr.api.images import Matcher, match_images, open_image
from semcorr.errors import UserError
from semcorr.report import pictures

SIDES = ("source", "target")
HOSTS = ["127.0.0.1", "localhost"]
LARGEST = 200_000_000  # bytes of an image file
SHOWN = 1024  # longer side, in pixels, of the images sent to the page


def application(matcher: Matcher, images: dict[str, Path]) -> flask.Flask:
    """The page as a WSGI application, for one user at a time.

    Args:
        matcher: matches the images.
        images: files to start with, by "source" and "target".

    Raises:
        UserError: an image cannot be read.
    """
    app = flask.Flask("semcorr", template_folder=str(Path(__file__).parent / "templates"), static_folder=None)
    # Other sites open in the browser must not reach this one through a host name of theirs.
    app.config.update(TRUSTED_HOSTS=HOSTS, MAX_CONTENT_LENGTH=LARGEST)
    held = {side: open_image(path) for side, path in images.items()}
    lock = threading.Lock()  # one network, one click at a time

    @app.get("/")
    def page() -> str:
        names = {"backbone": matcher.backbone, "weights": matcher.weights, "rule": matcher.rule_name}
        sizes = {side: image.size for side, image in held.items()}
        return flask.render_template("serve.html", names=names, sizes=sizes)

    @app.get("/image/<any(source, target):side>")
    def image(side: str) -> flask.Response:
        if side not in held:
            flask.abort(404)
        small = held[side] if max(held[side].size) <= SHOWN else pictures.fit(held[side], SHOWN)
        return flask.Response(pictures.encode(small), mimetype="image/webp", headers={"Cache-Control": "no-store"})

    @app.post("/image/<any(source, target):side>")
    def upload(side: str) -> dict[str, Any]:
        if flask.request.mimetype != "application/octet-stream":  # which another site's form cannot send
            flask.abort(415)
        held[side] = open_image(io.BytesIO(flask.request.get_data()))
        return {"size": held[side].size}

    @app.get("/match")
    def match() -> dict[str, Any]:
        if missing := [side for side in SIDES if side not in held]:
            raise UserError(f"choose a {missing[0]} image first")
        point = [flask.request.args.get(name, type=float, default=float("nan")) for name in "xy"]
        with lock:
            matches = match_images(held["source"], held["target"], [point], matcher=matcher)
            heatmap = matches.heatmaps()[0]
        target = held["target"]
        size = pictures.fit(target, min(SHOWN, max(target.size))).size
        return {
            "target": matches.target_points[0].tolist(),
            "similarity": float(matches.similarity[0]),
            "range": [float(np.min(heatmap)), float(np.max(heatmap))],
            "map": pictures.data_uri(pictures.overlay(heatmap, matches.target_grid, size)),
        }

    @app.errorhandler(UserError)
    def wrong(error: UserError) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, 422

    return app
