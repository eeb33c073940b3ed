"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import contextlib
import logging
import sys
import time
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

EVERY = 20  # seconds between two lines of a log

logger = logging.getLogger(__name__)


class _Lines(tqdm):
    """A bar that is logged as lines."""

    logged = float("inf")  # when the last line was; tqdm already displays while it is set up

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.logged = time.monotonic()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log the state, if the last line is old enough."""
        if msg is not None or time.monotonic() - self.logged < EVERY:
            return
        self.logged = time.monotonic()
        rate = self.format_dict["rate"]
        left = f", {self.format_interval((self.total - self.n) / rate)} left" if rate and self.total else ""
        share = f"{self.n} of {self.total}" if self.total else f"{self.n}"
        logger.info("%s: %s %ss%s", self.desc.removesuffix(": "), share, self.unit, left)


def progress(*arguments: Any, **options: Any) -> tqdm:
    """A tqdm bar; without a terminal, a logged line every 20 seconds."""
    if sys.stderr.isatty():
        return tqdm(*arguments, **options)
    return _Lines(*arguments, **options, mininterval=1, maxinterval=1, miniters=1, leave=False)


def logging_beside_bar() -> contextlib.AbstractContextManager:
    """Keep log lines from cutting through a bar on a terminal."""
    return logging_redirect_tqdm() if sys.stderr.isatty() else contextlib.nullcontext()
