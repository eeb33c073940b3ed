"""Downloads: complete or not at all, and verified."""

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

ATTEMPTS = 3  # per address, if the connection breaks
TIMEOUT = 60  # seconds without a byte


def download(urls: list[str], digest: str | None, path: Path) -> Path:
    """Download a file to `path`, from the first of `urls` that serves it completely.

    An existing correct file is not downloaded again. A download goes to a temporary file that is renamed to `path` once
    its length and, if known, its SHA-256 are verified.

    Raises:
        UserError: no address serves it; the message gives the reason for each.
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
            except (requests.RequestException, ValueError) as error:  # the server's fault, not the disk's
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
    """Whether there was no connection at all, so that an immediate retry would not help."""
    return bool(error.args) and isinstance(error.args[0], MaxRetryError)


@contextlib.contextmanager
def _quiet(target: logging.Logger) -> Iterator[None]:
    """Show only warnings of a logger while the block runs."""
    before = target.level
    target.setLevel(logging.WARNING)
    try:
        yield
    finally:
        target.setLevel(before)


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
