"""Files from elsewhere: downloaded whole or not at all, verified, and unpacked without trusting the names in them."""

import contextlib
import logging
import os
import shutil
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
import requests
from tqdm import tqdm
from urllib3.exceptions import MaxRetryError

from semcorr.artifacts.files import replacing, sha256, unwritable
from semcorr.errors import UserError, reason

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at one address, where the connection breaks
TIMEOUT = 60  # seconds without a byte
ENCRYPTED = 1  # bit of a zip member's flags
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


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


def is_archive(path: Path) -> bool:
    """Whether `unpack` can read a file."""
    try:
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except Exception:  # a few bytes of a compressed file have errors of their own
        return False


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip or tar archive, of any compression, into `folder`, which appears when it is complete.

    Raises:
        UserError: the archive is damaged, or holds what could write elsewhere: an absolute path, `..`, a link out of
            the archive, a device. Nothing is left.
    """
    try:
        with replacing(folder) as partial:
            partial.mkdir()
            members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
            for extract in tqdm(members(archive), unit="file", desc=f"unpacking {archive.name}", disable=None):
                extract(partial)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged archive makes of the libraries that read it
        raise UserError(
            f"{archive}: damaged or truncated archive ({reason(error)}). Delete it and get it again"
        ) from None
    return folder


def _tar_members(archive: Path) -> Iterator[Callable[[Path], None]]:
    with tarfile.open(archive) as file:
        for member in file:
            _check_name(archive, member.name)
            yield lambda folder, member=member: _put(archive, file, member, folder)
        # tarfile takes a damaged header for the end: what comes after would be lost without a word.
        file.fileobj.seek(file.offset)
        if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it ends, or is damaged, before the mark of its end")
        while file.fileobj.read(1 << 20):  # to the end, where what is compressed has its checksum
            pass


def _put(archive: Path, file: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one member below `folder`, provided that it, or what it links to, really lies there.

    tarfile's own filters do this too, but Python has them only since 3.11.4.
    """
    root, place = Path(os.path.realpath(folder)), folder / member.name
    target = place
    if member.issym() or member.islnk():
        target = (place.parent if member.issym() else folder) / member.linkname
    for path in (place if member.isdir() else place.parent, target):
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise _unsafe(archive, member.name, "leads out of it")
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    if not (member.isreg() or member.issym() or member.islnk()):
        raise _unsafe(archive, member.name, "is a device or a pipe")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if member.issym():
        place.symlink_to(member.linkname)
    elif member.islnk():
        place.hardlink_to(target)
    else:
        with file.extractfile(member) as source, place.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        if place.stat().st_size != member.size:
            raise EOFError(f"{member.name} ends too early")


def _zip_members(archive: Path) -> Iterator[Callable[[Path], None]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _check_name(archive, member.filename)
            if member.flag_bits & ENCRYPTED:
                raise UserError(f"{archive}: needs its password removed: {member.filename} is encrypted")
            if member.compress_type not in METHODS:
                raise UserError(
                    f"{archive}: {member.filename} is compressed by a method that Python cannot read (number "
                    f"{member.compress_type}; 9 is Deflate64, 93 Zstandard). Unpack it yourself and give the folder as "
                    f"path, or re-pack with plain Deflate"
                )
            member.filename = member.filename.replace("\\", "/")  # as Windows' packers separate folders
            yield lambda folder, member=member: file.extract(member, folder)


def _check_name(archive: Path, name: str) -> None:
    for flavour in (PurePosixPath, PureWindowsPath):
        path = flavour(name)
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise _unsafe(archive, name, "leads out of it")


def _unsafe(archive: Path, name: str, why: str) -> UserError:
    return UserError(f"{archive}: unsafe archive: member {name!r} {why}. It was not used")
