"""Files from elsewhere: downloaded whole or not at all, and verified."""

import contextlib
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pooch
import requests
from urllib3.exceptions import MaxRetryError

from semcorr.artifacts.files import sha256, unwritable
from semcorr.errors import UserError

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at one address, where the connection breaks
TIMEOUT = 60  # seconds without a byte


def download(urls: list[str], digest: str | None, path: Path) -> Path:
    """The file at `path`, from the first of `urls` that serves it whole.

    A file that is there and is the right one is not downloaded again. A download goes beside `path` and is moved onto
    it once its length and, where known, its SHA-256 are right.

    Raises:
        UserError: no address serves it; the message says why for each.
    """
    if path.exists() and digest in (None, sha256(path)):
        return path
    reasons = []
    for url in urls:
        logger.info("downloading %s", url)
        with unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _retrieve(url, digest, path)
            except (requests.RequestException, ValueError) as error:  # the address's fault, and not the disk's
                reasons.append(f"{url}: {_reason(error, digest)}")
                continue
        return path
    raise UserError(f"{path.name} could not be downloaded: {'; '.join(reasons)}. Or put the file at {path} yourself")


def _retrieve(url: str, digest: str | None, path: Path) -> None:
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    known = digest and f"sha256:{digest}"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _quiet(pooch.get_logger()):
                pooch.retrieve(url, known, fname=path.name, path=path.parent, downloader=downloader)
            return
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            if attempt == ATTEMPTS or _never_connected(error):
                raise
            logger.warning("%s: the connection broke, trying again", url)


def _never_connected(error: Exception) -> bool:
    """Whether there was no connection at all, so that trying again at once would not help."""
    return bool(error.args) and isinstance(error.args[0], MaxRetryError)


@contextlib.contextmanager
def _quiet(talker: logging.Logger) -> Iterator[None]:
    """Warnings alone, while the block runs."""
    before = talker.level
    talker.setLevel(logging.WARNING)
    try:
        yield
    finally:
        talker.setLevel(before)


def _reason(error: Exception, digest: str | None) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, ValueError) and digest and "hash" in str(error):
        return f"serves another file (its sha256 is not {digest}); it was not used"
    if isinstance(error, requests.Timeout):
        return "no answer"
    if isinstance(error, requests.ConnectionError):
        return f"ConnectionError ({'no connection' if _never_connected(error) else 'the connection broke'})"
    return textwrap.shorten(str(error), 100, placeholder=" ...") or type(error).__name__
