"""A store that is reached through the management API of a running gateway."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import click
import requests

from ..errors import StoreUnavailable
from ..keys.records import ApiKey, ProviderKey
from ..management.api import KEYS, PROVIDER_KEYS
from ..store.audit import AuditRow

R = TypeVar("R", ApiKey, ProviderKey)

SECONDS = 30.0
_DONE = {"POST": 201, "DELETE": 204}
Json = dict[str, Any]


class RemoteStore:
    """The parts of a store that the management API shows.

    Args:
        url: where the API is, `http://127.0.0.1:8081`.
        token: an admin token.

    Raises:
        ValueError: the URL is none, or there is no token.
    """

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("--api: not an http or https URL without a user")
        if not token:
            raise ValueError("AIGW_ADMIN_TOKEN is not set; --api asks for it")
        api = _API(url.rstrip("/"), token)
        self.keys = _Keys(api)
        self.provider_keys = _ProviderKeys(api)
        self.usage = _Usage(api)
        self.audit = _Audit(api)


class _API:
    """Asks, and turns the API's errors into those of a store."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False  # a netrc would take the token's place
        self._session.headers["Authorization"] = f"Bearer {token}"

    def ask(self, method: str, path: str, body: Json | None = None, **query: Any) -> Json:
        """Return the answer's document, empty for none.

        Raises:
            KeyError: there is no such record.
            ValueError: the API refuses the request, and says why.
            StoreUnavailable: it gave no answer of its own.
        """
        given = {name: value for name, value in query.items() if value is not None}
        try:
            answer = self._session.request(
                method, self._url + path, params=given, json=body, timeout=SECONDS,
                allow_redirects=False,
            )  # fmt: skip
            document = answer.json() if answer.content else {}
        except requests.JSONDecodeError:
            raise StoreUnavailable(f"{self._url} is no management API") from None
        except requests.RequestException as error:
            raise StoreUnavailable(f"{self._url} gave no answer: {type(error).__name__}") from None
        # Nothing else is an answer of ours: a redirect of a proxy has deleted nothing.
        wanted = 200 if path.endswith("/rotate") else _DONE.get(method, 200)
        if answer.status_code == wanted and isinstance(document, dict):
            return document
        raise _error(answer.status_code, document, self._url)


def _error(status: int, document: Any, url: str) -> Exception:
    message = document.get("msg") if isinstance(document, dict) else None
    if not isinstance(message, str) or status == 503:
        return StoreUnavailable(f"{url} answered {status}: {message or 'no management API'}")
    details = document.get("details")
    field = details.get("field") if isinstance(details, dict) else None
    if status in (401, 403):
        return click.ClickException(message)
    if status == 404 or (status == 400 and field == "before_id"):
        return KeyError(message)
    return ValueError(message)


class _Keys:
    """As `store.keys`."""

    def __init__(self, api: _API) -> None:
        self._api = api

    def create(self, **fields: Any) -> tuple[ApiKey, str]:
        document = self._api.ask("POST", f"/{KEYS}", _written(fields))
        return _key(document), str(document.get("token"))

    def get(self, id: str) -> ApiKey:
        return _key(self._api.ask("GET", _path(KEYS, id)))

    def list(self, limit: int = 100, before_id: str | None = None) -> builtins.list[ApiKey]:
        found = self._api.ask("GET", f"/{KEYS}", limit=limit, before_id=before_id)
        return [_key(document) for document in _listed(found, KEYS)]

    def update(self, id: str, **fields: Any) -> ApiKey:
        return _key(self._api.ask("PATCH", _path(KEYS, id), _written(fields)))

    def rotate(self, id: str, grace: int = 3600) -> tuple[ApiKey, str]:
        document = self._api.ask("POST", f"{_path(KEYS, id)}/rotate", {"grace": grace})
        return _key(document), str(document.get("token"))

    def delete(self, id: str) -> bool:
        return _deleted(self._api, _path(KEYS, id))


class _ProviderKeys:
    """As `store.provider_keys`."""

    def __init__(self, api: _API) -> None:
        self._api = api

    def create(self, **fields: Any) -> ProviderKey:
        return _provider_key(self._api.ask("POST", f"/{PROVIDER_KEYS}", _written(fields)))

    def list(self, limit: int = 100, before_id: str | None = None) -> builtins.list[ProviderKey]:
        found = self._api.ask("GET", f"/{PROVIDER_KEYS}", limit=limit, before_id=before_id)
        return [_provider_key(document) for document in _listed(found, PROVIDER_KEYS)]

    def rotate(self, id: str, *, secret: str) -> ProviderKey:
        path = f"{_path(PROVIDER_KEYS, id)}/rotate"
        return _provider_key(self._api.ask("POST", path, {"secret": secret}))

    def delete(self, id: str) -> bool:
        return _deleted(self._api, _path(PROVIDER_KEYS, id))


class _Usage:
    """As `store.usage`."""

    def __init__(self, api: _API) -> None:
        self._api = api

    def totals(self, by: str = "key") -> builtins.list[Json]:
        rows: builtins.list[Json] = _listed(self._api.ask("GET", "/usage", by=by), "usage")
        return rows


class _Audit:
    """As `store.audit`."""

    def __init__(self, api: _API) -> None:
        self._api = api

    def list(self, limit: int = 100, before: int | None = None) -> builtins.list[AuditRow]:
        found = _listed(self._api.ask("GET", "/audit", limit=limit, before_id=before), "audit")
        return [AuditRow(**{**row, "at": _moment(row["at"])}) for row in found]


def _listed(document: Json, name: str) -> builtins.list[Json]:
    found = document.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise StoreUnavailable("what answered is no management API")
    return found


def _path(resource: str, id_: str) -> str:
    if not id_:
        raise KeyError(id_)
    return f"/{resource}/{quote(id_, safe='')}"


def _deleted(api: _API, path: str) -> bool:
    try:
        api.ask("DELETE", path)
    except KeyError:
        return False
    return True


def _written(fields: Mapping[str, Any]) -> Json:
    return {name: _json(value) for name, value in fields.items()}


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


def _key(document: Json) -> ApiKey:
    return _record(ApiKey, document, ("created_at", "updated_at", "expires_at", "last_used"))


def _provider_key(document: Json) -> ProviderKey:
    return _record(ProviderKey, document, ("created_at", "updated_at"))


def _record(kind: type[R], document: Json, moments: tuple[str, ...]) -> R:
    try:
        fields = {**document, "redacted": document["display_name"]}
        for name in moments:
            fields[name] = _moment(fields[name])
        known = kind.__dataclass_fields__
        return kind(**{name: value for name, value in fields.items() if name in known})
    except (KeyError, TypeError, ValueError):
        raise StoreUnavailable("what answered is no management API") from None


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
