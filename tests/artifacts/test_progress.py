"""Progress without a terminal: a line now and then."""

import logging

from semcorr.artifacts.progress import EVERY, progress


def test_a_line_when_the_last_one_is_old(caplog):
    caplog.set_level(logging.INFO)
    with progress(total=10, desc="extract", unit="image") as bar:
        bar.n = 4
        bar.refresh()
        assert caplog.text == ""  # the start counts as a line
        bar.logged -= EVERY
        bar.refresh()
        assert "extract: 4 of 10 images" in caplog.text
        caplog.clear()
        bar.refresh()
        assert caplog.text == ""
