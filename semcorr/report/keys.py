"""Every key of params.yaml as a page of Markdown, from the schema: its allowed values and its meaning."""

import re
from collections.abc import Iterator
from typing import Any

from semcorr.params import Params

INTRODUCTION = """# Every key of params.yaml

Made from the schema by `semcorr schema`; a test compares the two. Keys are required unless their meaning says what they
are if left out. A mistake stops everything before any work starts, with the path of the key and what is allowed.
`<name>` is a name of your own: a-z, 0-9 and _.
"""


def reference() -> str:
    """The whole page."""
    schema = Params.model_json_schema()
    parts = [INTRODUCTION]
    for key, value in schema["properties"].items():
        parts += [f"## {key}\n", f"{_sentence(value['description'])}\n"]
        rows = list(_once(_rows(key, value, schema["$defs"])))
        if len(rows) > 1:
            rows = [row for row in rows if row[0] != key]
        parts.append("\n".join(["| key | value | meaning |", "|---|---|---|", *map(_line, rows)]) + "\n")
    return "\n".join(parts)


def _once(rows: Iterator[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """The rows, with what all variants of a mapping have in their lists said once, without the variant's name."""
    seen = set()
    for path, allowed, meaning in rows:
        if "[]" in path:
            path = re.sub(r" \([^)]*\)(?=[^(]*\[\])", "", path)
        if path not in seen:
            yield path, allowed, meaning
        seen.add(path)


def _rows(path: str, value: dict[str, Any], parts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """A key and all keys below it: path, allowed values, meaning."""
    meaning = value.get("description", "")
    if "discriminator" in value:
        word = value["discriminator"]["propertyName"]
        yield path, f"a mapping; `{word}` decides which keys it has", meaning
        for name, reference in value["discriminator"]["mapping"].items():
            yield from _below(f"{path} ({word}: {name})", reference, parts)
        return
    yield path, _allowed(value, parts), meaning
    for inner in (value, *value.get("anyOf", []), *value.get("oneOf", [])):
        if "$ref" in inner:
            yield from _below(path, inner["$ref"], parts)
        if "discriminator" in inner and inner is not value:
            yield from list(_rows(path, inner, parts))[1:]
        for named in inner.get("patternProperties", {}).values():
            yield from list(_rows(f"{path}.<name>", named, parts))[0 if "discriminator" in named else 1 :]
        if "discriminator" in inner.get("items", {}):
            yield from list(_rows(f"{path}[]", inner["items"], parts))[1:]


def _below(path: str, reference: str, parts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, value in _part(reference, parts)["properties"].items():
        yield from _rows(f"{path}.{key}", value, parts)


def _part(reference: str, parts: dict[str, Any]) -> dict[str, Any]:
    return parts[reference.rsplit("/", 1)[-1]]


def _allowed(value: dict[str, Any], parts: dict[str, Any]) -> str:
    """The values that a schema allows, in words."""
    for either in ("anyOf", "oneOf"):
        if either in value:
            return ", or ".join(dict.fromkeys(_allowed(one, parts) for one in value[either]))
    if "$ref" in value or "patternProperties" in value:
        return "a mapping"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    match value.get("type"):
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case "integer":
            return f"whole number{_limits(value)}"
        case "number":
            return f"number{_limits(value)}"
        case "array":
            items = value.get("items", {})
            what = "mappings" if "discriminator" in items else f"of: {_allowed(items, parts)}" if items else ""
            return f"a list {what}".strip()
        case "object":
            inner = value.get("additionalProperties")
            return f"a mapping to: {_allowed(inner, parts)}" if isinstance(inner, dict) else "a mapping"
    return "text"


def _limits(value: dict[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{word} {value[key]:g}" for key, word in words.items() if key in value and abs(value[key]) < 2**31]
    return "".join(f", {one}" for one in said)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _line(row: tuple[str, str, str]) -> str:
    path, allowed, meaning = (part.replace("|", r"\|") for part in row)
    return f"| `{path}` | {allowed} | {meaning} |"
