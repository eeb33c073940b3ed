"""Atomic writes, locks, checksums and JSON.

Every output is written under a temporary name and renamed once complete: a file that exists is complete, and a file
that an engine has linked into its cache is replaced, never changed in place.
"""

import contextlib
import errno
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
    errno.EFBIG: "the file system or a limit (ulimit -f) does not allow a file of this size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "you may not write there, check its permissions",
    errno.EPERM: "you may not write there, check its permissions",
}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # the last two differ on macOS


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; rename it to `path` when the block succeeds.

    If the block fails or the process dies, `path` is untouched.

    Raises:
        UserError: the disk is full or not writable.
    """
    if not path.name:
        raise UserError(f"{path}: not a file name")
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
    """Turn an error of the block into a UserError if it means that `path` cannot be written."""
    try:
        yield
    except Exception as error:  # each format's library has its own errors for a full disk
        for number, reason in UNWRITABLE.items():
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                raise UserError(f"{path}: cannot be written: {reason}. Nothing was changed; run again") from error
        raise


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process at a time create `path`; others wait.

    Raises:
        UserError: the lock file cannot be written.
    """
    with unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path.with_name(f".{path.name}.lock"))
    try:
        yield
    finally:
        lock.release()


def take_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """Acquire a lock: the operating system's, or a plain lock file where the file system has none.

    Args:
        path: the lock file.
        timeout: seconds to wait for another process; -1 waits forever.

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
    """Hold the lock of `take_lock` while the block runs."""
    lock = take_lock(path, timeout)
    try:
        yield
    finally:
        lock.release()


def has_locks(folder: Path) -> bool:
    """Whether a folder's file system supports the operating system's locks."""
    lock: BaseFileLock = FileLock(folder / f".{os.getpid()}.lock")
    try:
        lock.acquire(0)
        return not isinstance(lock, SoftFileLock)  # filelock's own stand-in where the system has no call
    except (OSError, NotImplementedError) as error:
        return not has_no_locks(error)
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def has_no_locks(error: Exception) -> bool:
    """Whether an error means that the file system has no locks, as on some network file systems."""
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in NO_LOCKS


def project_path(path: str) -> Path:
    """Resolve a path of params.yaml; relative ones start at the project's folder.

    DVC runs queued experiments in temporary folders inside it, which hold only files that git tracks.
    """
    project, in_experiment, _ = str(Path.cwd()).partition("/.dvc/tmp/exps/")
    try:
        return Path(project if in_experiment else "") / Path(path).expanduser()
    except RuntimeError as error:  # no such user, or no home folder
        raise UserError(f"{path}: {error}") from None


def remove(path: Path) -> None:
    """Remove a file, link or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return checksum(path, "sha256")


def checksum(path: Path, kind: str) -> str:
    """Hex checksum of a file's bytes; `kind` is a name that hashlib knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def canonical_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON: two-space indent, keys in the given order, no NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; Python accepts NaN, Infinity and 1e999, so values may be non-finite.

    Raises:
        UserError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: not valid JSON ({error})") from None
