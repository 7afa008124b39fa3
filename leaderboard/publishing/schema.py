"""The JSON Schema of a record's file, made from the code: docs/record.schema.json."""

from __future__ import annotations

import json
from typing import Any

from harness.records import LARGEST, SCHEMA, Record

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ID = {"pattern": r"^[A-Za-z0-9_-]+$"}  # it names a file


def record_schema() -> dict[str, Any]:
    """What `records/*.json` of this version hold: every field, the bounds of values, the checksum at the end."""
    found = Record.model_json_schema(mode="serialization")
    properties = found["properties"]
    properties["schema_version"] = {"const": SCHEMA, "title": "Schema Version"}
    properties["task_id"] |= _ID
    found["$defs"]["RunInfo"]["properties"]["id"] |= _ID
    properties["values"]["additionalProperties"] |= {"minimum": -LARGEST, "maximum": LARGEST}
    properties["sha256"] = {
        "description": "SHA-256 of the file's text without this field and the comma before it.",
        "pattern": "^[0-9a-f]{64}$",
        "title": "Sha256",
        "type": "string",
    }
    for part in (found, *found["$defs"].values()):
        part["required"] = [*part["properties"]]  # whatever has a default when it is made is written all the same
    return {"$schema": DIALECT, **found}


def schema_text() -> str:
    """As the committed file has it."""
    return json.dumps(record_schema(), indent=2, ensure_ascii=False) + "\n"
