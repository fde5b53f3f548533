"""The text of the API for `/docs` and `/openapi.json`, made from the structs.

Schemas are written in a form that holds in OpenAPI 3.0 (older FastAPI) as well as in 3.1.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lora_train.api.route import Route
from lora_train.api.shapes import FileAnswer, Problem

_REFERENCE = "#/components/schemas/{name}"


def operation(route: Route[Any, Any]) -> dict[str, Any]:
    """What FastAPI can't see of a route: its parameters or body, and its answers."""
    takes, gives, problem = _schemas(route.takes, route.gives, Problem)
    content = {"*/*": {}} if route.gives is FileAnswer else {"application/json": {"schema": gives}}
    answers = {
        "200": {"description": "Done.", "content": content},
        "4XX": {
            "description": "Why not: 401 for strangers, 404 for a file that is gone, 429 for too many calls or wrong "
            "passwords at once, else what was wrong.",
            "content": {"application/json": {"schema": problem}},
        },
    }
    if route.method == "GET":
        return {"parameters": _parameters(takes), "responses": answers}
    body = {"required": True, "content": {"application/json": {"schema": takes}}}
    return {"requestBody": body, "responses": answers}


def _parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]


def _schemas(*types: Any) -> list[dict[str, Any]]:
    schemas, components = msgspec.json.schema_components(types, schema_hook=_any_value, ref_template=_REFERENCE)
    return [_inlined(schema, components) for schema in schemas]


def _any_value(kind: type) -> dict[str, Any]:
    """msgspec has no schema for `object`."""
    if kind is object:
        return {"description": "Any value."}
    raise NotImplementedError


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """`schema` without references: a route can't add to the document's components. No struct holds itself."""
    if isinstance(schema, (list, tuple)):
        return [_inlined(part, components) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(components[schema["$ref"].rpartition("/")[2]], components)
    if schema.get("type") == "null":
        return {"enum": [None]}  # 3.0 knows no type "null"
    inlined = {name: _inlined(part, components) for name, part in schema.items()}
    if inlined.pop("contentEncoding", None) == "base64":
        inlined["format"] = "byte"
    inlined.pop("discriminator", None)  # it tells which by reference; each one's `kind` does too
    if inlined.get("required") == []:
        del inlined["required"]  # 3.0 wants at least one, or none of it
    return inlined
