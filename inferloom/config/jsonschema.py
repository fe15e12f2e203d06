"""The configuration's JSON Schema, for editors and for checking files elsewhere."""

from __future__ import annotations

from typing import Any

import msgspec

from inferloom.config.drivers import OPTIONS
from inferloom.config.schema import Config


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of config.toml: types, bounds and meanings; what spans several keys is not in it."""
    schema = msgspec.json.schema(Config)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Inferloom configuration",
        **schema,
    }
    definitions = schema["$defs"]
    driver = definitions["DriverConfig"]["properties"]
    devices = driver["device"]
    driver["device"] = {
        **{key: devices.pop(key) for key in ("description", "default") if key in devices},
        "anyOf": [devices, devices["items"]],
    }
    driver["options"] = {
        "description": driver["options"]["description"],
        "anyOf": [{"$ref": f"#/$defs/{struct.__name__}"} for struct in OPTIONS.values()],
    }
    for struct in OPTIONS.values():
        definitions[struct.__name__] = msgspec.json.schema(struct)["$defs"][struct.__name__]
    return schema
