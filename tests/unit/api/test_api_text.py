"""The OpenAPI text, for both generations of FastAPI."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")


pytestmark = pytest.mark.compat

World = Any
PREFIX = "/train-tools/v1/"


def test_the_openapi_text_is_whole(world: World) -> None:
    document = world.server.openapi()
    json.dumps(document)
    operations = {
        (method.upper(), path[len(PREFIX) :]): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    ours = {route.path[len(PREFIX) :] for route in world.server.routes if route.path.startswith(PREFIX)}
    assert {path for _, path in operations} == ours - {"page.js", "page.css", "localizations/{language}.json"}
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    for (method, path), operation in operations.items():
        assert operation["summary"], path
        assert set(operation["responses"]) == {"200", "4XX"}, path
        assert ("requestBody" in operation) == (method == "POST"), path
        _check_schemas(operation, document)
    picture = operations["GET", "dataset/picture"]["parameters"]
    assert {(p["name"], p["in"], p["required"]) for p in picture} == {
        ("project", "query", True),
        ("version", "query", True),
        ("file", "query", True),
        ("waiting", "query", False),
        ("size", "query", False),
    }
    body = operations["POST", "dataset/upload"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["project", "version", "files"]
    assert body["properties"]["files"]["items"]["properties"]["content"] == {"type": "string", "format": "byte"}
    answer = operations["GET", "projects"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["items"]["properties"]["versions"]["items"]["properties"].keys() == {"id", "name", "created"}


def _check_schemas(node: Any, document: dict[str, Any]) -> None:
    """Only what is right in OpenAPI 3.0 and 3.1."""
    if isinstance(node, list):
        for part in node:
            _check_schemas(part, document)
    if isinstance(node, dict):
        assert "$ref" not in node
        assert "contentEncoding" not in node
        if isinstance(node.get("properties"), dict):
            assert node["type"] == "object"
            assert set(node.get("required", [])) <= node["properties"].keys()
        kind = node.get("type")
        assert not isinstance(kind, str) or kind in {"object", "array", "string", "number", "integer", "boolean"}
        assert node.get("required") != []
        for part in node.values():
            _check_schemas(part, document)
