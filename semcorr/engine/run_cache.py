"""Which stale jobs `dvc repro` would restore from DVC's cache instead of running them.

DVC does so where dvc.lock or its run cache has an entry with the same command, parameters and inputs. The inputs of a
job may be outputs that are themselves restored, so jobs are looked up in order of dependency.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from semcorr.engine.current import LOCK, Current
from semcorr.engine.dvc_sync import repository
from semcorr.engine.graph import Graph, Job
from semcorr.engine.memory import Memory, files
from semcorr.errors import UserError
from semcorr.params import PARAMS_FILE


def restorable(graph: Graph, current: Current) -> set[str]:
    """The names of the stale jobs that would be restored; none without DVC."""
    if not current.stale or not Path(".dvc").is_dir():
        return set()
    with contextlib.suppress(UserError), repository() as repo:  # suppressed: DVC is at work
        return _Cache(repo, current).restorable(graph) if repo is not None else set()
    return set()


class _Cache:
    """DVC's cache, and the checksums of files as they would be once all that can be restored is.

    Args:
        repo: the project's DVC repository.
        current: what is stale.
    """

    def __init__(self, repo: Any, current: Current):
        from dvc.dvcfile import Lockfile

        self._repo, self._current, self._memory = repo, current, Memory()
        self._locked = Lockfile(repo, str(LOCK)).load().get("stages", {})
        self._later: dict[Path, str | None] = {}  # outputs of stale jobs; None: not known before the job has run

    def restorable(self, graph: Graph) -> set[str]:
        """The names of the stale jobs that would be restored."""
        names = set()
        for job in graph.jobs():
            if job.name in self._current.stale:
                entry = self._entry(job)
                self._later |= dict.fromkeys(job.outputs.values())
                if entry is not None:
                    names.add(job.name)
                    self._later |= {Path(out["path"]): out["md5"] for out in entry["outs"]}
        return names

    def _entry(self, job: Job) -> dict[str, Any] | None:
        """What DVC noted when it ran the same job before, if all its outputs are in the cache."""
        reads = {path.as_posix(): self._md5(path) for path in job.reads}
        if None in reads.values():
            return None
        asked = {
            "cmd": job.command,
            "deps": [{"path": path, "hash": "md5", "md5": md5} for path, md5 in sorted(reads.items())],
            "params": {PARAMS_FILE.as_posix(): job.settings},
            "outs": [{"path": path} for path in sorted(path.as_posix() for path in job.outputs.values())],
        }
        cache, key, locked = self._repo.stage_cache, _key(asked), self._locked.get(job.name)
        entry = locked if locked and _key(locked) == key else None
        if entry is None:
            noted = sorted(Path(cache.cache_dir, key[:2], key).glob("*"), key=lambda path: path.stat().st_mtime)
            entry = cache._load_cache(key, noted[-1].name) if noted else None
        return entry if entry and cache._create_stage(entry).outs_cached() else None

    def _md5(self, path: Path) -> str | None:
        """The checksum of a file, or of a folder with its files as they would then be; None if not known."""
        if path in self._current.basis:
            return hashlib.md5(self._current.basis[path].encode()).hexdigest()
        if path in self._later:
            return self._later[path]
        later = {file.relative_to(path).as_posix(): md5 for file, md5 in self._later.items() if path in file.parents}
        if not later:
            return self._memory.md5(path) if path.exists() else None
        now = {name: self._memory.md5(file) for name, file in files(path) if name not in later}
        if None in later.values():
            return None
        entries = [{"md5": md5, "relpath": name} for name, md5 in sorted({**now, **later}.items())]
        return f"{hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest()}.dir"


def _key(entry: dict[str, Any]) -> str:
    """DVC's key of an entry: a hash of everything except its outputs' content."""
    from dvc.stage.cache import _get_cache_hash

    return _get_cache_hash(dict(entry), key=True)
