"""One's own readouts and networks, named in params.yaml by import path: `package.module:name`.

Modules are those that Python finds in the project's folder or among the installed ones. Naming one runs its code.
"""

import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from semcorr import params
from semcorr.errors import UserError, reason


def is_own(name: str) -> bool:
    """Whether a family or readout is an import path."""
    return ":" in name


def module_of(path: str) -> str:
    """The module of an import path."""
    return path.partition(":")[0]


def root() -> Path:
    """The folder of the project around this one, or this one."""
    file = params.find_project()
    return Path.cwd() if file is None else file.parent


def file_of(module: str) -> Path | None:
    """The file of a module of the project's folder or an installed one, without running any code; None without one."""
    top, *below = module.split(".")
    found = importlib.machinery.PathFinder.find_spec(top, [str(root()), *sys.path])
    if found is None:
        return None
    if found.submodule_search_locations is None:  # a single file
        alone = not below and found.origin is not None and found.origin.endswith(".py")
        return Path(str(found.origin)) if alone else None
    paths = [Path(place, *below) for place in found.submodule_search_locations]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def load(path: str) -> Any:
    """What an import path names.

    Raises:
        UserError: there is no such module or name, or the module fails.
    """
    module, _, name = path.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{path}: is of Python's own library; allowed: a module of the project's folder or installed")
    here = str(root())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise UserError(f"{path}: {module} has no {name}") from None
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: no module {error.name}; allowed: a module of the project's folder ({here}) or an installed one"
        ) from None
    except Exception as error:  # whatever its code raises
        raise UserError(f"{path}: cannot be imported ({reason(error)})") from None


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
            made: Any = own.model_validate(dict(values))
            return made
        return partial(own, **_arguments(own, values, first))
    except ValidationError as error:
        raise UserError(f"{path}: {params.explain(error)}") from None
    except (TypeError, NameError, ValueError) as error:
        raise UserError(f"{path}: its arguments cannot be read ({reason(error)})") from None


def _arguments(own: Any, values: Mapping[str, Any], first: int) -> dict[str, Any]:
    listed = list(inspect.signature(own).parameters.values())[first:]
    function = vars(own).get("__init__", own) if isinstance(own, type) else own
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
    checked = model.model_validate(dict(values))
    return {name: getattr(checked, name) for name in fields}
