"""The OpenAPI document of the management API, made from the same fields that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import __version__
from . import fields

Json = dict[str, Any]

_TIME = {"type": "string", "format": "date-time"}
_NULLABLE_TIME = {"type": ["string", "null"], "format": "date-time"}
_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}

_KEY = {
    "id": {"type": "string", "pattern": "^aigk_"},
    "uri": {"type": "string", "format": "uri"},
    "created_at": _TIME,
    "updated_at": _TIME,
    "name": _TEXT,
    "description": _TEXT,
    "metadata": _TEXT,
    "endpoint_id": {"type": ["string", "null"]},
    "expires_at": _NULLABLE_TIME,
    "last_used": _NULLABLE_TIME,
    "disabled": {"type": "boolean"},
    "display_name": _TEXT,
    "limits": _TEXTS,
    "models": {"type": ["array", "null"], "items": _TEXT},
    "networks": _TEXTS,
    "active": _TEXTS,
}
_PROVIDER_KEY = {
    "id": {"type": "string", "pattern": "^aigpk_"},
    "uri": {"type": "string", "format": "uri"},
    "created_at": _TIME,
    "updated_at": _TIME,
    "provider": _TEXT,
    "description": _TEXT,
    "metadata": _TEXT,
    "disabled": {"type": "boolean"},
    "display_name": _TEXT,
}
_ERROR = {
    "error_code": {"type": "string", "pattern": "^ERR_AIGW_"},
    "status_code": {"type": "integer"},
    "msg": _TEXT,
    "details": {
        "type": "object",
        "properties": {"operation_id": _TEXT, "field": _TEXT},
        "required": ["operation_id"],
    },
}


def _object(properties: Json, required: list[str] | None = None) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def _written(of: Mapping[str, fields.Field], required: tuple[str, ...] = ()) -> Json:
    return _object({name: field.schema for name, field in of.items()}, list(required))


def _body(schema: Json, *, required: bool = True) -> Json:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _answer(schema: str, description: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _operation(name: str, summary: str, answers: Json, **more: Any) -> Json:
    errors = {
        str(status): {"$ref": "#/components/responses/Error"}
        for status in (400, 401, 403, 404, 405, 408, 411, 413, 415, 422, 503)
    }
    return {"operationId": name, "summary": summary, "responses": {**errors, **answers}, **more}


_PAGING = [
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 100},
    },
    {"name": "before_id", "in": "query", "schema": _TEXT},
]
_SPAN = [
    {
        "name": "by",
        "in": "query",
        "schema": {"enum": ["key", "model", "provider", "day"], "default": "key"},
    },
    {"name": "since", "in": "query", "schema": _TIME},
    {"name": "until", "in": "query", "schema": _TIME},
]
_NAME = {"type": ["string", "null"]}
_COUNT = {"type": "integer"}
_SUM = {
    "type": "object",
    "properties": {
        "key": _NAME,
        "model": _NAME,
        "provider": _NAME,
        "day": _NAME,
        "requests": _COUNT,
        "input_tokens": _COUNT,
        "output_tokens": _COUNT,
        "cached_input_tokens": _COUNT,
        "cost": {"type": ["number", "null"]},
    },
    "required": ["requests", "input_tokens", "output_tokens", "cached_input_tokens", "cost"],
    "additionalProperties": False,
}
_AUDIT_ROW = {
    "number": _COUNT,
    "at": _TIME,
    "actor": _TEXT,
    "origin": _TEXT,
    "action": {"enum": ["create", "update", "rotate", "delete", "rekey"]},
    "record": _TEXT,
    "changes": {"type": "object"},
}
_COUNTED = {
    "limiter": _TEXT,
    "limit": _TEXT,
    "bucket": _TEXT,
    "used": {"type": "number"},
    "reserved": {"type": "number"},
    "left": {"type": "number"},
    "unit": _TEXT,
    "expires_in": {"type": "number"},
}
_ID = [{"name": "id", "in": "path", "required": True, "schema": _TEXT}]


def _resource(
    path: str,
    noun: str,
    schema: str,
    create: Json,
    change: Json,
    rotate: Json,
    secret_once: bool,
) -> Json:
    made = f"{schema}WithToken" if secret_once else schema
    name = schema[0].lower() + schema[1:]
    return {
        f"/{path}": {
            "post": _operation(
                f"create{schema}", f"Create a {noun}", {"201": _answer(made, "Created")},
                requestBody=_body(create),
            ),
            "get": _operation(
                f"list{schema}s", f"List {noun}s, the newest first",
                {"200": _answer(f"{schema}List", "A page")}, parameters=_PAGING,
            ),
        },
        f"/{path}/{{id}}": {
            "parameters": _ID,
            "get": _operation(f"get{schema}", f"Show a {noun}", {"200": _answer(schema, name)}),
            "patch": _operation(
                f"update{schema}",
                f"Change a {noun}: an absent field keeps its value, null clears it",
                {"200": _answer(schema, "Changed")}, requestBody=_body(change),
            ),
            "delete": _operation(
                f"delete{schema}", f"Delete a {noun} for good",
                {"204": {"description": "Deleted"}},
            ),
        },
        f"/{path}/{{id}}/rotate": {
            "parameters": _ID,
            "post": _operation(
                f"rotate{schema}", f"Give a {noun} a new secret; its id stays",
                {"200": _answer(made, "Rotated")},
                requestBody=_body(rotate, required=not secret_once),
            ),
        },
    }  # fmt: skip


def _list(path: str, schema: str) -> Json:
    items = {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}}
    uri = {"type": "string", "format": "uri"}
    following = {"type": ["string", "null"], "format": "uri"}
    return _object({path: items, "uri": uri, "next_page_uri": following})


def document(server: str) -> Json:
    """Return the document; `server` is the URL at which it was asked for."""
    schemas = {
        "Key": _object(_KEY),
        "KeyWithToken": _object({**_KEY, "token": _TEXT}),
        "KeyList": _list("ai_gateway_api_keys", "Key"),
        "ProviderKey": _object(_PROVIDER_KEY),
        "ProviderKeyList": _list("provider_keys", "ProviderKey"),
        "LimitList": _object(
            {"limits": {"type": "array", "items": _object(_COUNTED)}, "uri": _TEXT}
        ),
        "Usage": _object({"usage": {"type": "array", "items": _SUM}, "uri": _TEXT, "by": _TEXT}),
        "AuditRow": _object(_AUDIT_ROW),
        "AuditList": _list("audit", "AuditRow"),
        "Error": _object(_ERROR),
    }
    paths = {
        "/usage": {
            "get": _operation(
                "getUsage", "Sum up what was used", {"200": _answer("Usage", "The sums")},
                parameters=_SPAN,
            ),
        },
        "/limits": {
            "get": _operation(
                "listLimits", "What is counted of every limit now",
                {"200": _answer("LimitList", "The counts")},
                parameters=[{"name": "key_id", "in": "query", "schema": _TEXT}],
            ),
        },
        "/metrics": {
            "get": _operation(
                "getMetrics", "What was counted, in Prometheus' text form",
                {
                    "200": {
                        "description": "The metrics",
                        "content": {"text/plain": {"schema": _TEXT}},
                    }
                },
            ),
        },
        "/audit": {
            "get": _operation(
                "listAudit", "Who changed what, the newest first",
                {"200": _answer("AuditList", "A page")}, parameters=_PAGING,
            ),
        },
        **_resource(
            "ai_gateway_api_keys", "gateway key", "Key", _written(fields.KEY_FIELDS),
            _written(fields.KEY_CHANGES), _written(fields.GRACE), True,
        ),
        **_resource(
            "provider_keys", "provider key", "ProviderKey",
            _written(fields.PROVIDER_KEY_FIELDS, ("provider", "secret")),
            _written(fields.PROVIDER_KEY_CHANGES), _written(fields.NEW_SECRET, ("secret",)), False,
        ),
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "AI gateway management API", "version": __version__},
        "servers": [{"url": server}],
        "security": [{"admin": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Error": _answer("Error", "What is wrong")},
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
    }
