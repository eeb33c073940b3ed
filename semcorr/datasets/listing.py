"""The files of a dataset that is not fetched yet, in its folder or archive, to count it.

Only lists, names and the headers of images are read. Nothing is unpacked, checked or written.
"""

import contextlib
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from semcorr.datasets.archive import is_archive
from semcorr.datasets.base import in_any_case
from semcorr.datasets.decode import image_size
from semcorr.datasets.formats import reader
from semcorr.errors import UserError, reason
from semcorr.params import DatasetSpec

SAMPLE = 20  # images whose size is looked at
USUAL = (375, 500)  # height and width, where no image can be read
LISTS, IMAGES = (".txt", ".csv"), (".jpg", ".png")


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path):
        self._root = root

    def names(self, pattern: str) -> list[str]:
        """Their paths that match, sorted; `*` stands for any part of a name."""
        return _visible(path.relative_to(self._root).as_posix() for path in self._root.glob(pattern))

    def text(self, name: str) -> str:
        """The content of a list; nothing if there is no such file."""
        path = self._root / name
        return path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""

    def size(self, name: str) -> tuple[int, int] | None:
        """Height and width of an image; None if it cannot be read."""
        with contextlib.suppress(UserError):
            return image_size(in_any_case(self._root / name))
        return None

    def below(self) -> "list[Folder]":
        """The files below each of its folders."""
        return [Folder(path) for path in sorted(self._root.iterdir()) if path.is_dir()]


class Archive:
    """Files in an archive, or in one of its folders."""

    def __init__(self, path: Path, prefix: str = ""):
        self._path, self._prefix = path, prefix
        self._content = _content(path)

    def names(self, pattern: str) -> list[str]:
        """Their paths that match, sorted; `*` stands for any part of a name."""
        pattern = re.escape(self._prefix + pattern).replace(r"\*", "[^/]*")
        matching = re.compile(pattern).fullmatch
        return _visible(name.removeprefix(self._prefix) for name in self._content if matching(name))

    def text(self, name: str) -> str:
        """The content of a list; nothing if there is no such file."""
        known = self._content.get(self._prefix + name)
        return known if isinstance(known, str) else _text(self._path, self._prefix + name)

    def size(self, name: str) -> tuple[int, int] | None:
        """Height and width of an image; None if it cannot be read."""
        return self._content.get(self._prefix + name)

    def below(self) -> "list[Archive]":
        """The files below each of its folders."""
        tops = sorted({name.partition("/")[0] for name in self._content if "/" in name})
        return [Archive(self._path, f"{top}/") for top in tops]


def _visible(names: Iterator[str]) -> list[str]:
    """Names without hidden files and those that macOS adds to archives, sorted."""
    return sorted(name for name in names if not re.search(r"(^|/)(\.|__MACOSX)", name))


@cache
def _content(archive: Path) -> dict[str, Any]:
    """Names in an archive -> the text of a list, the size of an image, or None.

    It is read once from the beginning to the end, since a compressed tar archive cannot be read otherwise.
    """
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        return {path.as_posix(): _look(path.suffix, start) for path, start in members(archive)}
    except Exception as error:  # the libraries raise many kinds for a damaged archive
        raise UserError(f"{archive}: damaged or truncated archive ({reason(error)})") from None


def _text(archive: Path, name: str) -> str:
    """The content of one member that is no list, such as a file of annotations; nothing if there is none."""
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    for path, start in members(archive) if name in _content(archive) else ():
        if path.as_posix() == name:
            return start().read().decode("utf-8-sig", "replace")
    return ""


def _zip_members(archive: Path) -> Iterator[tuple[PurePosixPath, Callable[[], Any]]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if not member.is_dir():
                yield _with_plain_suffix(member.filename.replace("\\", "/")), partial(file.open, member)


def _tar_members(archive: Path) -> Iterator[tuple[PurePosixPath, Callable[[], Any]]]:
    with tarfile.open(archive) as file:
        for member in file:
            if member.isfile():
                yield _with_plain_suffix(member.name), partial(file.extractfile, member)


def _with_plain_suffix(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    return path.with_suffix(path.suffix.lower())


def _look(suffix: str, start: Callable[[], IO[bytes]]) -> Any:
    """What there is to know about a member of an archive."""
    if suffix in LISTS:
        return start().read().decode("utf-8-sig", "replace")
    if suffix in IMAGES:
        with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(start()) as image:
            return image.height, image.width
    return None


def count(path: Path, spec: DatasetSpec) -> tuple[int, int, tuple[int, int]] | None:
    """Count what a folder or archive holds of a dataset.

    Returns:
        The numbers of images and of pairs, and (height, width) of a usual image; None if the folder or archive is
        damaged or holds nothing in the format, which is for `fetch` to explain.
    """
    try:
        top: Folder | Archive = Archive(path) if is_archive(path) else Folder(path)
        for files in (top, *top.below()):
            if pairs := reader(spec.format).listed(files, spec)[: spec.limit]:
                images = sorted({name for both in pairs for name in both})
                sizes = [files.size(name) for name in images[:: max(1, len(images) // SAMPLE)]]
                shape = np.median([size for size in sizes if size] or [USUAL], axis=0)
                return len(images), len(pairs), tuple(shape.astype(int).tolist())
    except (UserError, OSError):
        return None
    return None
