"""The provenance of every output: its fingerprint (see `graph`), its settings, and those of its inputs.

It is stored inside the file: an HDF5 attribute, Parquet or safetensors metadata, a JSON key, an HTML meta tag. A
network's tensors have it beside them, in a JSON file of the same name, so that equal tensors are equal files.
"""

import html
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import canonical_json, read_json, replacing, write_json
from semcorr.errors import UserError, reason

CONTENT = "semcorr.content"  # metadata key of a table's checksum
CHECKSUM = "checksum"
RECORD = "record"  # role of the file that identifies the tensors beside it
TENSORS = "content"  # metadata key of the digest of a safetensors file's tensors
KEY = "semcorr"  # a single key with JSON, since safetensors does not fix the order of several


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request that outputs were made for.

    Attributes:
        stage: its name.
        settings: the parameters that affect the result, by key.
        fingerprint: the one that the outputs must carry.
    """

    stage: str
    settings: dict[str, Any]
    fingerprint: str


def provenance(job: Request, inputs: dict[str, dict[str, Any]] | None = None, **facts: Any) -> dict[str, Any]:
    """The provenance of a job's outputs, with that of its inputs; `facts` are known only at run time."""
    record = {
        "stage": job.stage,
        "fingerprint": job.fingerprint,
        "settings": job.settings,
        **facts,
        "inputs": inputs or {},
    }
    return sealed(record)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its checksum added or updated."""
    return record | {CHECKSUM: _checksum(record)}


def _checksum(record: dict[str, Any]) -> int:
    """CRC-32 of a record without its checksum."""
    return zlib.crc32(canonical_json({key: value for key, value in record.items() if key != CHECKSUM}).encode())


def write_table(path: Path, table: Any, record: dict[str, Any]) -> None:
    """Write a pyarrow table as Parquet, with the provenance `record` and a checksum of the content in its metadata."""
    import pyarrow.parquet

    metadata = {**(table.schema.metadata or {}), KEY: dumps(record), CONTENT: str(_table_checksum(table))}
    with replacing(path) as partial:
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")


def read_table(path: Path) -> Any:
    """Read a pyarrow table written by `write_table`.

    Raises:
        UserError: it is missing or damaged.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()  # read_table would import pandas, half a second
        expected = (table.schema.metadata or {}).get(CONTENT.encode())
        if expected is not None and int(expected) != _table_checksum(table):
            raise ValueError("the checksum of its content is wrong")
    except Exception as error:  # pyarrow's own, and those that it passes on
        raise _unreadable(path, error) from None
    return table


def _table_checksum(table: Any) -> int:
    """CRC-32 of a table's names, types and values, independent of the encoding."""
    import pyarrow

    checksum = 0
    for name in table.column_names:
        column = table[name].combine_chunks()
        parts = [name.encode()]
        while True:
            parts.append(column.is_null().to_numpy(zero_copy_only=False).tobytes())
            if not pyarrow.types.is_nested(column.type):
                break
            parts.append(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()  # the lists' elements
        parts.append(str(column.type).encode())
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            parts += [text.encode() + b"\0" for text in column.fill_null("").to_pylist()]
        elif pyarrow.types.is_binary(column.type):
            parts += [len(value).to_bytes(8, "little") + value for value in column.fill_null(b"").to_pylist()]
        else:
            parts.append(column.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
        checksum = zlib.crc32(b"".join(parts), checksum)
    return checksum


def write_result(path: Path, values: dict[str, Any]) -> None:
    """Write a result, its `provenance` among the values, as JSON with a checksum of the content."""
    write_json(path, {CHECKSUM: zlib.crc32(canonical_json(values).encode()), **values})


def read_result(path: Path) -> dict[str, Any]:
    """Read a result written by `write_result`.

    Raises:
        UserError: it is missing or damaged.
    """
    values = read_json(path)
    expected = values.pop(CHECKSUM, None) if isinstance(values, dict) else 0
    if expected is not None and expected != zlib.crc32(canonical_json(values).encode()):
        raise _unreadable(path, ValueError("the checksum of its content is wrong"))
    return values


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read ({reason(error)}). Run: dvc repro (or snakemake --cores all)")


def dumps(record: dict[str, Any]) -> str:
    """Serialize a provenance record."""
    return canonical_json(record)


def read(path: Path) -> dict[str, Any]:
    """Read the provenance of an output in any of our formats.

    Raises:
        UserError: the file is missing, damaged, or not an output of semcorr.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file. Run: dvc repro (or snakemake --cores all)")
    try:
        text = _READERS[path.suffix](path)
        record: Any = json.loads(text) if isinstance(text, str | bytes) else text
        if not isinstance(record["fingerprint"], str):
            raise TypeError("the fingerprint is not text")
        if record.get(CHECKSUM) not in (None, _checksum(record)):
            raise ValueError("the checksum of its provenance is wrong")
    except UserError:
        raise
    except Exception as error:  # each format's library has its own errors for a damaged file
        raise UserError(f"{path}: not a complete file of semcorr ({reason(error)}). Delete it and run again") from None
    return record


def expect(path: Path, fingerprint: str) -> dict[str, Any]:
    """Read the provenance of `path`, which must have been made with the current parameters.

    Raises:
        UserError: it was made with other parameters, or is not an output of semcorr.
    """
    record = read(path)
    if record["fingerprint"] != fingerprint:
        raise UserError(
            f"{path}: made under other parameters than params.yaml has now. Run: dvc repro (or snakemake --cores all)"
        )
    return record


def verified(inputs: dict[str, Path], expects: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The provenance of all inputs of a job, by role.

    Raises:
        UserError: one was made with other parameters, or is not an output of semcorr.
    """
    return {role: expect(path, expects[role]) for role, path in inputs.items() if role != RECORD}


def _hdf5(path: Path) -> str:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        return file.attrs[KEY]


def _parquet(path: Path) -> bytes:
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path).metadata[KEY.encode()]


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()[KEY])
    if "fingerprint" in record:
        return record
    beside = path.with_suffix(".json")
    found = read(beside)
    if found["sha256"] != record[TENSORS]:
        raise ValueError(f"its tensors are not those of {beside}")
    return found


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))["provenance"]


def _html(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        head = file.read(1 << 16)
    [content] = re.findall(rf'<meta name="{KEY}" content="([^"]*)">', head)
    return html.unescape(content)


_READERS = {".h5": _hdf5, ".parquet": _parquet, ".safetensors": _safetensors, ".json": _json, ".html": _html}
