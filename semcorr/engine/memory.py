"""A cache of facts about files, such as checksums, in `.semcorr/`, so that large files are not read again.

A file is identified by its size, time and inode; a folder by the names, sizes and times of all files in it. The cache
may be deleted: its facts are then computed again.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import write_text
from semcorr.errors import UserError

FOLDER = Path(".semcorr")  # semcorr's own files in the project
NO_CONTENT = re.compile(r"\.snakemake_timestamp|__pycache__|.*\.pyc|.*\.partial")  # ignored names, as in .dvcignore


class Memory:
    """Cached facts about files.

    Args:
        path: the cache file.
    """

    def __init__(self, path: Path = FOLDER / "memory.json"):
        self._path = path
        try:
            self._known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not there, or damaged
            self._known = {}
        self._learned = False

    def ask(self, question: str, path: Path, answer: Callable[[Path], Any]) -> Any:
        """What `answer` returns for a file or folder, cached until that changes.

        Args:
            question: the cache key.
            path: the file or folder.
            answer: computes the JSON value.
        """
        key = f"{question} {path.as_posix()}"
        try:
            look, known = _look(path), self._known.get(key)
            if not (isinstance(known, list) and len(known) == 2 and known[0] == look):
                known = self._known[key] = [look, answer(path)]
                self._learned = True
        except OSError as error:  # a dangling link, or an unreadable file
            raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
        return known[1]

    def md5(self, path: Path) -> str:
        """The MD5 of a file's bytes, or of the names and checksums of a folder's files, as in DVC."""
        return self.ask("md5", path, _md5)

    def save(self) -> None:
        """Write the cache; without write permission, do nothing."""
        if self._learned:
            try:
                write_text(self._path, json.dumps(self._known, separators=(",", ":")))
            except (OSError, UserError):
                return
            self._learned = False


def files(path: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of each file in a folder, sorted by name; links are followed."""
    paths, seen = [], set()
    for folder, below, names in os.walk(path, followlinks=True):
        if (here := os.path.realpath(folder)) in seen:  # a link to one of its parents
            below.clear()
            continue
        seen.add(here)
        below[:] = [name for name in below if not NO_CONTENT.fullmatch(name)]
        paths += [Path(folder, name) for name in names if not NO_CONTENT.fullmatch(name)]
    return iter(sorted((file.relative_to(path).as_posix(), file) for file in paths))


def _look(path: Path) -> str:
    if not path.is_dir():
        stat = path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    stats = [f"{name} {(stat := file.stat()).st_size} {stat.st_mtime_ns}" for name, file in files(path)]
    return hashlib.md5("\n".join(stats).encode()).hexdigest()


def _md5(path: Path) -> str:
    if path.is_dir():
        entries = [{"md5": _md5(file), "relpath": name} for name, file in files(path)]
        return f"{hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest()}.dir"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
