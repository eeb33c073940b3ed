"""What a stage's code does: a hash of each module that it imports, comments, docstrings and layout left out.

Imports are followed from the stage's own module, wherever in it they stand. A module that is imported by its name at
run time, as those of readouts, losses, networks and formats are, is not reached by them: it counts for the jobs
that use it, and for no other.

A hash is formed over the syntax tree, whose parts are named alike in every supported Python.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import sha256
from semcorr.engine.memory import Memory
from semcorr.errors import UserError

ROOT = Path(__file__).parents[2]
# What these say reaches a stage as values, which are compared themselves, or is said to people.
UNCOUNTED = re.compile(r"semcorr(\.params|\.errors|\.engine(\..+)?)?")
FORMAT = "code 1"  # of the hashes; another one, and none that is remembered counts
LAYOUT = {"kind", "type_comment", "type_ignores", "ctx"}  # parts of the tree that change nothing


def modules(memory: Memory, *names: str) -> dict[str, str]:
    """Every module and template that the named modules rest on -> a hash of what it does.

    Raises:
        UserError: there is no module of a name.
    """
    missing = [name for name in names if file_of(name) is None]
    if missing:
        raise UserError(f"{missing[0]}: no such module, while params.yaml asks for it by its name")
    found: dict[str, str] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        path = file_of(name)
        if name in found or UNCOUNTED.fullmatch(name) or path is None:
            continue
        found[name], reached = memory.ask(FORMAT, path, _read)
        queue += [name.rpartition(".")[0], *reached]
        for template in sorted((path.parent / "templates").glob("*")):
            if template.name in reached:
                found[template.relative_to(ROOT).as_posix()] = memory.ask("sha256", template, sha256)
    return dict(sorted(found.items()))


def file_of(name: str) -> Path | None:
    """The file of a module of this package."""
    if name.partition(".")[0] != "semcorr":
        return None
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _read(path: Path) -> list[Any]:
    """The hash of a module's code, and the names that it imports; what is a template's name is one of them."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: is no Python ({error})") from None
    return [hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:16], sorted(set(_reached(tree)))]


def _reached(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".html"):
            yield node.value


def _plain(node: Any) -> Any:
    """A syntax tree as nested lists: no place in the file, no text that stands for itself, nothing that is empty."""
    if isinstance(node, list):
        return [_plain(one) for one in node if not _is_docstring(one)]
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr", _joined(node)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if name not in LAYOUT)
    return [type(node).__name__, *([name, value] for name, value in fields if value not in ([], "None"))]


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _joined(text: ast.JoinedStr) -> list[Any]:
    """The parts of an f-string, neighbouring texts made one: Pythons cut them differently."""
    found: list[Any] = []
    for part in text.values:
        if not isinstance(part, ast.Constant):
            found.append(_plain(part))
        elif found and isinstance(found[-1], str):
            found[-1] += part.value
        elif part.value:
            found.append(part.value)
    return found
