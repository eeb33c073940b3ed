"""A hash of each module that a stage's code imports; comments, docstrings and layout do not count.

Imports are followed from the stage's own module, wherever they occur in it. Modules that are imported by name at run
time (readouts, losses, networks, formats) are not reached this way: they count only for the jobs that use them.

The hash is of the syntax tree, which is the same in every supported Python.
"""

import ast
import hashlib
import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import sha256
from semcorr.engine.memory import Memory
from semcorr.errors import UserError

ROOT = Path(__file__).parents[2]
# These reach a stage only as values, which are compared themselves, or as messages.
UNCOUNTED = re.compile(r"semcorr(\.params|\.errors|\.engine(\..+)?)?")
FORMAT = "code 2"  # of the hashes; changing it invalidates all remembered ones
LAYOUT = {"kind", "type_comment", "type_ignores", "ctx"}  # fields without effect


def modules(memory: Memory, *names: str) -> dict[str, str]:
    """Every module and template that the named modules use -> its hash.

    Raises:
        UserError: a module does not exist.
    """
    own = {name.partition(".")[0] for name in names if not _is_semcorrs(name)}
    missing = [name for name in names if file_of(name, own) is None]
    if missing:
        raise UserError(f"{missing[0]}: no such module, but params.yaml names it")
    hashes: dict[str, str] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        path = file_of(name, own)
        if name in hashes or UNCOUNTED.fullmatch(name) or path is None:
            continue
        hashes[name], reached = memory.ask(FORMAT, path, _read)
        if not _is_semcorrs(name):  # what one's own module imports of one's own
            from semcorr import plugins  # which stages without such modules do not load

            own |= {other.partition(".")[0] for other in reached if other and plugins.in_project(other)}
        is_package = path.name == "__init__.py"
        queue += [name.rpartition(".")[0], *(_absolute(other, name, is_package) for other in reached)]
        for template in sorted((path.parent / "templates").glob("*")) if _is_semcorrs(name) else ():
            if template.name in reached:
                hashes[template.relative_to(ROOT).as_posix()] = memory.ask("sha256", template, sha256)
    return dict(sorted(hashes.items()))


def _is_semcorrs(name: str) -> bool:
    return name.partition(".")[0] == "semcorr"


def file_of(name: str, own: Set[str] = frozenset()) -> Path | None:
    """The file of a module of this package, or of one's own packages of these names."""
    if name.partition(".")[0] in own:
        from semcorr import plugins

        return plugins.file_of(name)
    if not _is_semcorrs(name):
        return None
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _absolute(name: str, module: str, is_package: bool) -> str:
    """The absolute name of an imported module; relative ones begin with dots."""
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    parts = module.split(".") if is_package else module.split(".")[:-1]
    return ".".join([*parts[: len(parts) - level + 1], name.lstrip(".")]).strip(".")


def _read(path: Path) -> list[Any]:
    """The hash of a module's code, and the names of the modules and templates that it uses."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not valid Python ({error})") from None
    return [hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:16], sorted(set(_reached(tree)))]


def _reached(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield start
            yield from (f"{start}{'' if start.endswith('.') else '.'}{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".html"):
            yield node.value


def _plain(node: Any) -> Any:
    """A syntax tree as nested lists, without positions, docstrings and empty fields."""
    if isinstance(node, list):
        return [_plain(child) for child in node if not _is_docstring(child)]
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr", _joined(node)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if name not in LAYOUT)
    return [type(node).__name__, *([name, value] for name, value in fields if value not in ([], "None"))]


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _joined(text: ast.JoinedStr) -> list[Any]:
    """The parts of an f-string, adjacent texts joined, since Python versions split them differently."""
    parts: list[Any] = []
    for part in text.values:
        if not isinstance(part, ast.Constant):
            parts.append(_plain(part))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += str(part.value)
        elif part.value:
            parts.append(part.value)
    return parts
