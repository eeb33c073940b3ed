"""Zip and tar archives: unpacked completely or not at all, without trusting the names in them."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from semcorr.artifacts.files import replacing
from semcorr.artifacts.progress import progress
from semcorr.errors import UserError, reason

ENCRYPTED = 1  # flag bit of a zip member
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


def is_archive(path: Path) -> bool:
    """Whether `unpack` can read a file."""
    try:
        return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))
    except Exception:  # damaged compressed files raise various errors
        return False


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip or tar archive, of any compression, into `folder`, which appears once complete.

    Raises:
        UserError: the archive is damaged, or unsafe: it has an absolute path, `..`, a link out of the archive, or a
            device. Nothing is left behind.
    """
    try:
        with replacing(folder) as partial:
            partial.mkdir()
            members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
            for extract in progress(members(archive), unit="file", desc=f"unpacking {archive.name}"):
                extract(partial)
    except (UserError, MemoryError):
        raise
    except tarfile.FilterError as error:
        raise _unsafe(archive, error.tarinfo.name, f"is refused: {reason(error)}") from None
    except Exception as error:  # the libraries raise many kinds for a damaged archive
        raise UserError(
            f"{archive}: damaged or truncated archive ({reason(error)}). Delete it and get it again"
        ) from None
    return folder


def _tar_members(archive: Path) -> Iterator[Callable[[Path], object]]:
    with tarfile.open(archive) as file:
        for member in file:
            _check_name(archive, member.name)
            yield partial(file.extract, member, filter="data")
        # tarfile takes a damaged header for the end, and would silently skip the rest.
        stream: Any = file.fileobj
        stream.seek(file.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it ends, or is damaged, before its end marker")
        while stream.read(1 << 20):  # to the end, where compressed files have their checksum
            pass


def _zip_members(archive: Path) -> Iterator[Callable[[Path], object]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _check_name(archive, member.filename)
            if member.flag_bits & ENCRYPTED:
                raise UserError(f"{archive}: {member.filename} is encrypted. Remove the password")
            if member.compress_type not in METHODS:
                raise UserError(
                    f"{archive}: {member.filename} is compressed by a method that Python cannot read (number "
                    f"{member.compress_type}; 9 is Deflate64, 93 Zstandard). Unpack it yourself and give the folder as "
                    f"path, or re-pack with plain Deflate"
                )
            member.filename = member.filename.replace("\\", "/")  # some Windows packers write backslashes
            yield partial(file.extract, member)


def _check_name(archive: Path, name: str) -> None:
    for flavour in (PurePosixPath, PureWindowsPath):
        path = flavour(name)
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise _unsafe(archive, name, "leads out of it")


def _unsafe(archive: Path, name: str, why: str) -> UserError:
    return UserError(f"{archive}: unsafe archive: member {name!r} {why}. It was not used")


def read_member(archive: Path, name: str) -> bytes:
    """Read one member of a zip archive, such as a wheel.

    Raises:
        KeyError: there is no such member.
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(archive) as file:
        return file.read(name)


def verify_members(archive: Path) -> None:
    """Verify the checksums of a zip archive's members, for instance of a .pth file, which torch does not check.

    Raises:
        ValueError, zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(archive) as file:
        if (damaged := file.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
