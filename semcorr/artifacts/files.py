"""Files that are either complete or not there, and the bytes in them.

Every output is written beside its final name and moved onto it when it is whole: a file that exists is complete,
and a file that an engine has linked into its cache is replaced, never changed in place.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock

from semcorr.errors import UserError

UNWRITABLE = {
    errno.ENOSPC: "the disk is full, free some space",
    errno.EDQUOT: "your quota on this disk is used up, free some space",
    errno.EFBIG: "the file system or a limit (ulimit -f) takes no file of this size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "you may not write there, see its permissions",
    errno.EPERM: "you may not write there, see its permissions",
}


NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write a file or a folder to; move it onto `path` when the block succeeds.

    Whatever was there before stays until then. When the block fails, or the process dies, `path` is untouched.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    if not path.name:
        raise UserError(f"{path}: is no name of a file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with unwritable(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
            yield partial
            if partial.is_dir() and path.exists():  # a folder cannot be moved onto another
                remove(path)
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                remove(partial)


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Say what is wrong in the words of UserError when the block fails because `path` cannot be written."""
    try:
        yield
    except Exception as error:  # each format's library has its own errors for a disk that takes no more
        for number, reason in UNWRITABLE.items():
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                raise UserError(f"{path}: cannot be written: {reason}. Nothing was changed; run again") from error
        raise


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`; the others wait.

    Raises:
        UserError: there is no room for the lock, or it may not be written.
    """
    with unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path.with_name(f".{path.name}.lock"))
    try:
        yield
    finally:
        lock.release()


def take_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """A lock of the system's, or a file that stands for one where the file system has none; taken.

    Args:
        path: of the lock's file.
        timeout: seconds to wait for another process; -1 waits for as long as it takes.

    Raises:
        filelock.Timeout: another process holds it.
    """
    lock: BaseFileLock = FileLock(path)
    try:
        lock.acquire(timeout)
    except (OSError, NotImplementedError) as error:
        if not has_no_locks(error):
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.soft"))
        lock.acquire(timeout)
    return lock


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock, as `take_lock` takes it, while the block runs."""
    lock = take_lock(path, timeout)
    try:
        yield
    finally:
        lock.release()


def has_locks(folder: Path) -> bool:
    """Whether a folder's file system has locks of the system's."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return not has_no_locks(error)
    finally:
        os.close(file)
    return True


def has_no_locks(error: Exception) -> bool:
    """Whether an error says that a file system has no locks, as some network file systems have not."""
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in NO_LOCKS


def project_path(path: str) -> Path:
    """A path of params.yaml: a relative one starts at the project's folder.

    DVC runs queued experiments in temporary folders inside it, where nothing that git does not hold would be found.
    """
    project, in_experiment, _ = str(Path.cwd()).partition("/.dvc/tmp/exps/")
    try:
        return Path(project if in_experiment else "") / Path(path).expanduser()
    except RuntimeError as error:  # no such user, or one without a home
        raise UserError(f"{path}: {error}") from None


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return checksum(path, "sha256")


def checksum(path: Path, kind: str) -> str:
    """Hex checksum of a file's bytes, of a kind that hashlib knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON for people to read: two spaces, keys in the order given, no NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; Python takes NaN, Infinity and 1e999 for numbers, so values may be those.

    Raises:
        UserError: it is missing or not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: not valid JSON ({error})") from None
