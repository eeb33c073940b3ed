"""One's own readouts and networks, named in params.yaml by import path: `package.module:name`.

Modules are those that Python finds in the project's folder or among the installed ones. Naming one runs its code.
"""

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from semcorr import params
from semcorr.errors import UserError, reason


def root() -> Path:
    """The folder of the project around this one, or this one."""
    file = params.find_project()
    return Path.cwd() if file is None else file.parent


def add(folder: Path) -> None:
    """Have Python find the modules of a project's folder, after all others, so that none hides an installed one."""
    if (here := str(folder.resolve())) not in sys.path:
        sys.path.append(here)


def in_project(module: str) -> bool:
    """Whether a module is one of the project's folder."""
    top = module.partition(".")[0]
    path = root() / top
    return top != "semcorr" and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def file_of(module: str) -> Path | None:
    """The file of a module of the project's folder or an installed one, without running any code; None without one."""
    add(root())
    top, *below = module.split(".")
    try:
        found = importlib.util.find_spec(top)  # of a top level module, which imports nothing
    except (ImportError, ValueError):
        return None
    if found is None:
        return None
    if found.submodule_search_locations is None:  # a single file
        alone = not below and found.origin is not None and found.origin.endswith(".py")
        return Path(str(found.origin)) if alone else None
    paths = [Path(place, *below) for place in found.submodule_search_locations]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def imported(module: str) -> Any:
    """A module of the project's folder or an installed one.

    Raises:
        UserError: there is none, or it fails.
    """
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{module}: is of Python's own library; allowed: a module of the project's folder or installed")
    add(root())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        where = f"the project's folder ({root()})"
        raise UserError(f"{module}: no module {error.name}; allowed: one of {where} or an installed one") from None
    except (Exception, SystemExit) as error:  # whatever its code raises
        why = reason(error) if isinstance(error, Exception) else error.code
        raise UserError(f"{module}: cannot be imported ({type(error).__name__}: {why})") from None


def load(path: str) -> Any:
    """What an import path names.

    Raises:
        UserError: there is no such module or name, or the module fails.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(imported(module), name)
    except AttributeError:
        raise UserError(f"{path}: {module} has no {name}") from None


def bound(path: str, own: Any, values: Mapping[str, Any], first: int) -> Callable[..., Any]:
    """A function or class with its arguments bound, validated by what comes with it.

    Args:
        path: names it in errors.
        own: a pydantic model, which is made from the values; or else something that is called with keywords, whose
            annotations and defaults validate them.
        values: by name.
        first: how many positional arguments come before them.

    Raises:
        UserError: a value is missing, unknown or not allowed.
    """
    try:
        if isinstance(own, type) and issubclass(own, BaseModel):
            made: Any = own.model_validate_json(json.dumps(dict(values)), strict=True)
            return made
        return partial(own, **_arguments(own, values, first))
    except ValidationError as error:
        raise UserError(f"{path}: {params.explain(error)}") from None
    except (TypeError, NameError, ValueError) as error:
        raise UserError(f"{path}: its arguments cannot be read ({reason(error)})") from None


def _arguments(own: Any, values: Mapping[str, Any], first: int) -> dict[str, Any]:
    listed = list(inspect.signature(own).parameters.values())[first:]
    function = getattr(own, "__init__") if isinstance(own, type) else own  # noqa: B009  # mypy knows no such access
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for one in listed:
        if one.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if one.kind is inspect.Parameter.VAR_KEYWORD:
            return dict(values)
        default = ... if one.default is inspect.Parameter.empty else one.default
        fields[one.name] = (hints.get(one.name, Any), default)
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    model = create_model("Arguments", __config__=config, **fields)
    checked = model.model_validate_json(json.dumps(dict(values)), strict=True)  # where a list may become a tuple
    return {name: getattr(checked, name) for name in fields}
