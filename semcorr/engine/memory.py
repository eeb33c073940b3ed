"""What was found out about files, remembered in `.semcorr/`, so that no large file is read twice for one answer.

A file is known by its size and time; a folder by the names, sizes and times of all files in it. Nothing rests on the
memory: where it is gone, what it held is found out anew.
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

FOLDER = Path(".semcorr")  # in the project: what semcorr itself keeps there
NO_CONTENT = re.compile(r"\.snakemake_timestamp|__pycache__|.*\.pyc|.*\.partial")  # names; .dvcignore says the same


class Memory:
    """Answers about files.

    Args:
        path: of the file that keeps them.
    """

    def __init__(self, path: Path = FOLDER / "memory.json"):
        self._path = path
        try:
            self._known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not there, or damaged
            self._known = {}
        self._learned = False

    def ask(self, question: str, path: Path, answer: Callable[[Path], Any]) -> Any:
        """What `answer` says of a file or folder, remembered for as long as that looks as it did.

        Args:
            question: a word for it.
            path: of what is there.
            answer: finds it out; a value of JSON.
        """
        key = f"{question} {path.as_posix()}"
        try:
            look, known = _look(path), self._known.get(key)
            if not (isinstance(known, list) and len(known) == 2 and known[0] == look):
                known = self._known[key] = [look, answer(path)]
                self._learned = True
        except OSError as error:  # a link to nothing, a file that may not be read
            raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
        return known[1]

    def md5(self, path: Path) -> str:
        """The MD5 of a file's bytes, or of a folder's files as DVC forms it: over their names and checksums."""
        return self.ask("md5", path, _md5)

    def save(self) -> None:
        """Keep what was learned; where nothing may be written, it is found out again another time."""
        if self._learned:
            try:
                write_text(self._path, json.dumps(self._known, separators=(",", ":")))
            except (OSError, UserError):
                return
            self._learned = False


def files(path: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of each file in a folder, links followed, in the order of their names."""
    found, seen = [], set()
    for folder, below, names in os.walk(path, followlinks=True):
        if (here := os.path.realpath(folder)) in seen:  # a link back to where it lies
            below.clear()
            continue
        seen.add(here)
        below[:] = [name for name in below if not NO_CONTENT.fullmatch(name)]
        found += [Path(folder, name) for name in names if not NO_CONTENT.fullmatch(name)]
    return iter(sorted((file.relative_to(path).as_posix(), file) for file in found))


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
