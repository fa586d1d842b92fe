"""The fields of the resources: what may be written, of which type, and how records are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from ..keys import ApiKey
from ..keys.records import ProviderKey
from .errors import APIError

Json = dict[str, Any]


class Field(NamedTuple):
    """A field that a client may write.

    Attributes:
        schema: its JSON Schema, for the OpenAPI document.
        read: turns its JSON value into the store's; TypeError where the type is wrong.
        cleared: what `null` stands for in the store.
    """

    schema: Json
    read: Callable[[Any], Any]
    cleared: Any


def _typed(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError
        return value

    return read


def _texts(value: Any) -> list[str]:
    if type(value) is not list or not all(type(item) is str for item in value):
        raise TypeError
    return value


def _time(value: Any) -> datetime:
    if type(value) is not str:
        raise TypeError
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("expires_at: is no RFC 3339 time") from None
    if moment.tzinfo is None:
        raise ValueError("expires_at: names no time zone; add Z for UTC")
    return moment


def _whole_number(value: Any) -> int:
    # To JSON Schema 60.0 is an integer too.
    if type(value) is float and value.is_integer():
        return int(value)
    number: int = _typed(int)(value)
    return number


def _text(longest: int, cleared: str | None = "") -> Field:
    schema = {"type": ["string", "null"], "maxLength": longest}
    return Field(schema, _typed(str), cleared)


def _list(cleared: tuple[str, ...] | None = ()) -> Field:
    schema = {"type": ["array", "null"], "items": {"type": "string"}}
    return Field(schema, _texts, cleared)


_FLAG = Field({"type": ["boolean", "null"]}, _typed(bool), False)

KEY_FIELDS = {
    "name": _text(255),
    "description": _text(255),
    "metadata": _text(4096),
    "endpoint_id": _text(255, None),
    "expires_at": Field({"type": ["string", "null"], "format": "date-time"}, _time, None),
    "limits": _list(),
    "models": _list(None),
    "networks": _list(),
    "active": _list(),
}
KEY_CHANGES = {**KEY_FIELDS, "disabled": _FLAG}

_SECRET = Field({"type": "string", "maxLength": 4096}, _typed(str), "")
PROVIDER_KEY_FIELDS = {
    "provider": Field({"type": "string", "minLength": 1, "maxLength": 64}, _typed(str), ""),
    "secret": _SECRET,
    "description": _text(255),
    "metadata": _text(4096),
}
PROVIDER_KEY_CHANGES = {
    "description": _text(255),
    "metadata": _text(4096),
    "disabled": _FLAG,
}

GRACE = {
    "grace": Field(
        {"type": ["integer", "null"], "minimum": 0, "maximum": 2592000}, _whole_number, 3600
    )
}
NEW_SECRET = {"secret": _SECRET}


def read(body: Json, fields: Mapping[str, Field], required: tuple[str, ...] = ()) -> Json:
    """Return the store's values for a body.

    Raises:
        APIError: 400 for a field that is unknown, read-only, missing or of the wrong type, 422
            for a value that cannot be; the field is named.
    """
    for name in body:
        if name not in fields:
            shown = name if name.isidentifier() and len(name) < 64 else "a field"
            raise APIError(400, "UNKNOWN_FIELD", f"{shown} cannot be set here.", field=shown)
    for name in required:
        if body.get(name) is None:
            raise APIError(400, "MISSING_FIELD", f"{name} is required.", field=name)
    return {name: _value(name, value, fields[name]) for name, value in body.items()}


def _value(name: str, value: Any, field: Field) -> Any:
    if value is None:
        return field.cleared
    try:
        return field.read(value)
    except TypeError:
        wanted = field.schema["type"]
        kind = wanted if isinstance(wanted, str) else wanted[0]
        raise APIError(400, "WRONG_TYPE", f"{name} must be of type {kind}.", field=name) from None
    except ValueError as error:
        raise APIError(422, "INVALID_VALUE", str(error), field=name) from None


def key_document(key: ApiKey, uri: str) -> Json:
    """Return a gateway key as the API shows it; its token is never in it."""
    return {
        "id": key.id,
        "uri": uri,
        "created_at": time_text(key.created_at),
        "updated_at": time_text(key.updated_at),
        "name": key.name,
        "description": key.description,
        "metadata": key.metadata,
        "endpoint_id": key.endpoint_id,
        "expires_at": time_text(key.expires_at),
        "last_used": time_text(key.last_used),
        "disabled": key.disabled,
        "display_name": key.redacted,
        "limits": list(key.limits),
        "models": None if key.models is None else list(key.models),
        "networks": list(key.networks),
        "active": list(key.active),
    }


def provider_key_document(key: ProviderKey, uri: str) -> Json:
    """Return a provider key as the API shows it; its secret is never in it."""
    return {
        "id": key.id,
        "uri": uri,
        "created_at": time_text(key.created_at),
        "updated_at": time_text(key.updated_at),
        "provider": key.provider,
        "description": key.description,
        "metadata": key.metadata,
        "disabled": key.disabled,
        "display_name": key.redacted,
    }


def time_text(moment: datetime | None) -> str | None:
    """Return a time in RFC 3339, UTC, ending in `Z`, to the second."""
    if moment is None:
        return None
    # Not `strftime`, whose years before 1000 have three digits.
    return moment.replace(microsecond=0, tzinfo=None).isoformat() + "Z"
