"""The management API as a WSGI application of its own."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from .._addresses import is_loopback
from .._options import several
from ..body import discard_unread, whole
from ..counters import Engine, resolve_counters
from ..environ import enter, request_id
from ..errors import BodyError, BodyInvalid, StoreUnavailable
from ..keys.records import AdminToken
from ..limits import showing
from ..store import Store, resolve_store
from ..store.audit import acting
from . import fields
from .errors import APIError, not_found, out_of_bounds
from .openapi import document as openapi_document

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
KEYS = "ai_gateway_api_keys"
PROVIDER_KEYS = "provider_keys"
Json = dict[str, Any]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ADMIN = AdminToken(id="admin", name="admin", role="write")


class ManagementAPI:
    """Create, list, show, change, rotate and delete keys over HTTP.

    ::

        application = ManagementAPI(store, os.environ["AIGW_ADMIN_TOKEN"])

    Every path but `/healthz` asks for an admin token as a bearer token; nothing else counts, no
    cookie and no gateway key. The one given here may do everything; those in the store
    (`store.admin_tokens`, `aigw admin-tokens create --role read|write`) what their role says, and
    the audit names them. Serve it on an address that clients do not reach. The document at
    `/openapi.json` describes all of it. The fields are ngrok's, but for what a gateway that stands
    alone has no records of: `created_by`, `last_updated_by`, `endpoint` and `provider_keys`.

    Args:
        store: an open store, or its URL.
        admin_token: the token that opens all of it.
        allowed_hosts: the host names under which it may be asked for; empty for any. On a
            loopback address name `localhost` and `127.0.0.1`: a page in a browser of the same
            machine can otherwise reach it under a name of its own (DNS rebinding).
        counters: the engine in which the gateway counts, or its URL, for `GET /limits`; None for
            none.
        metrics: returns the content type and the text of `GET /metrics`, like
            `aigw_middleware.metrics.exposition`; None for none.

    Raises:
        ValueError: an option is wrong.
    """

    def __init__(
        self,
        store: Store | str,
        admin_token: str,
        *,
        allowed_hosts: Iterable[str] = (),
        counters: Engine | str | None = None,
        metrics: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        self._metrics = metrics
        self._store = resolve_store(store)
        self._counters = None if counters is None else resolve_counters(counters)
        if not isinstance(admin_token, str) or not (
            admin_token and admin_token.isascii() and admin_token.isprintable()
        ):
            raise ValueError("admin_token: must be a text that can be sent in a header")
        self._token = sha256(admin_token.encode()).digest()
        self._hosts = frozenset(name.lower() for name in several("allowed_hosts", allowed_hosts))
        self._routes = Map(
            [
                Rule("/healthz", endpoint=_healthz, methods=["GET"]),
                Rule("/openapi.json", endpoint=_openapi, methods=["GET"]),
                Rule("/usage", endpoint=_usage, methods=["GET"]),
                Rule("/audit", endpoint=_audit, methods=["GET"]),
                Rule("/limits", endpoint=self._limits, methods=["GET"]),
                Rule("/metrics", endpoint=self._exposition, methods=["GET"]),
                *_resource(KEYS, _KeyRoutes()),
                *_resource(PROVIDER_KEYS, _ProviderKeyRoutes()),
            ],
            strict_slashes=False,
            redirect_defaults=False,
            merge_slashes=False,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._store!r}>"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        enter(environ)
        request = Request(environ)
        try:
            response = self._answer(request)
        except APIError as error:
            response = _error(error, environ)
        except StoreUnavailable as error:
            logger.error("the management API got no answer: %s", error)
            unavailable = APIError(
                503,
                "STORE_UNAVAILABLE",
                f"The {error.engine} are unavailable; try again shortly.",
                headers=(("Retry-After", "1"),),
            )
            response = _error(unavailable, environ)
        response.headers["X-Request-Id"] = request_id(environ)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        self._check_host(request)
        try:
            routes = self._routes.bind_to_environ(request.environ)
            _ = request.root_url
        except (HTTPException, ValueError):
            raise APIError(400, "BAD_HOST", "The Host header names no host.") from None
        try:
            endpoint, values = routes.match()
        except MethodNotAllowed as error:
            self._check_token(request)
            allowed = ", ".join(sorted(error.valid_methods or ()))
            raise APIError(
                405, "METHOD_NOT_ALLOWED", "The method is not for this path.",
                headers=(("Allow", allowed),),
            ) from None  # fmt: skip
        except NotFound:
            self._check_token(request)
            raise APIError(404, "NOT_FOUND", "There is no such path.") from None
        except HTTPException as error:
            raise APIError(error.code or 400, "BAD_REQUEST", "The request is not valid.") from None
        handler: Callable[..., Response] = endpoint
        if endpoint is _healthz:
            return handler(self._store, request, **values)
        admin = self._check_token(request)
        if admin.role != "write" and request.method not in ("GET", "HEAD"):
            raise APIError(403, "ROLE_NOT_ALLOWED", "This admin token may only read.")
        with acting(f"api:{admin.name or admin.id}", request.environ.get("REMOTE_ADDR") or ""):
            return handler(self._store, request, **values)

    def _limits(self, store: Store, request: Request) -> Response:
        """`GET /limits`: what is counted now."""
        if self._counters is None:
            raise APIError(404, "NOT_FOUND", "The API was given no engine that counts limits.")
        _check_parameters(request, "key_id")
        key_id = request.args.get("key_id")
        rows = [showing.document(count) for count in self._counters.counts()]
        if key_id is not None:
            rows = [row for row in rows if showing.is_of(row, key_id)]
        return _json({"limits": rows, "uri": request.root_url.rstrip("/") + "/limits"})

    def _exposition(self, store: Store, request: Request) -> Response:
        """`GET /metrics`: what was counted, in Prometheus' text form."""
        if self._metrics is None:
            raise APIError(404, "NOT_FOUND", "The API was given no metrics.")
        _check_parameters(request)
        content_type, text = self._metrics()
        return Response(text, content_type=content_type)

    def _check_host(self, request: Request) -> None:
        if not self._hosts:
            return
        host = request.environ.get("HTTP_HOST", "").lower()
        name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if name not in self._hosts and not (
            self._hosts & _LOOPBACK and is_loopback(name.strip("[]"))
        ):
            raise APIError(403, "HOST_NOT_ALLOWED", "The API is not served under this name.")

    def _check_token(self, request: Request) -> AdminToken:
        """Return whose token the request presents."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() == "bearer":
            presented = sha256(token.encode("utf-8", "surrogateescape")).digest()
            if hmac.compare_digest(presented, self._token):
                return _ADMIN
            named = self._store.admin_tokens.verify(token)
            if named is not None:
                return named
        raise APIError(
            401, "UNAUTHORIZED", "A valid admin token is required.",
            headers=(("WWW-Authenticate", 'Bearer realm="ai-gateway-management"'),),
        )  # fmt: skip


def _error(error: APIError, environ: WSGIEnvironment) -> Response:
    discard_unread(environ)
    response = _json(error.document(request_id(environ)), error.status)
    response.headers.extend(list(error.headers))
    return response


def _json(document: Json, status: int = 200) -> Response:
    return Response(json.dumps(document), status, mimetype="application/json")


def _healthz(store: Store, request: Request) -> Response:
    return _json({"status": "ok"})


def _openapi(store: Store, request: Request) -> Response:
    return _json(openapi_document(request.root_url.rstrip("/")))


def _usage(store: Store, request: Request) -> Response:
    """`GET /usage`: sums by key, model, provider or day."""
    _check_parameters(request, "by", "since", "until")
    by = request.args.get("by", "key")
    try:
        since, until = (_moment(request, name) for name in ("since", "until"))
        rows = store.usage.totals(by=by, since=since, until=until)
    except ValueError as error:
        field = str(error).partition(": ")[0]
        raise APIError(400, "INVALID_PARAMETER", f"{field} is not valid.", field=field) from None
    return _json({"usage": rows, "uri": request.url, "by": by})


def _audit(store: Store, request: Request) -> Response:
    """`GET /audit`: a page of the audit, the newest first."""
    limit, before_id = _page(request)
    text = before_id if before_id is not None else "1" + "0" * 17
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise APIError(400, "UNKNOWN_BEFORE_ID", "before_id is no number.", field="before_id")
    found = store.audit.list(limit=limit, before=int(text))
    base = request.root_url.rstrip("/") + "/audit"
    more = len(found) == limit and found[-1].number > 1
    following = f"{base}?before_id={found[-1].number}&limit={limit}" if more else None
    shown = [{**row._asdict(), "at": fields.time_text(row.at)} for row in found]
    return _json({"audit": shown, "uri": base, "next_page_uri": following})


def _moment(request: Request, name: str) -> datetime | None:
    text = request.args.get(name)
    if text is None:
        return None
    try:
        # A plus sign in a query is a space unless it was quoted.
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise ValueError(f"{name}: no RFC 3339 time") from None
    if moment.tzinfo is None:
        raise ValueError(f"{name}: no time zone")
    return moment


def _body(request: Request, *, optional: bool = False) -> Json:
    """Return the request's JSON object.

    Raises:
        APIError: 415 for another content type, 413 for too much of it, 400 for anything else.
    """
    if (
        optional
        and not request.content_length
        and "chunked" not in str(request.headers.get("Transfer-Encoding"))
    ):
        return {}
    if request.mimetype != "application/json":
        raise APIError(415, "UNSUPPORTED_MEDIA_TYPE", "The body must be application/json.")
    try:
        return whole(request.environ, MAX_BODY_BYTES).json()
    except BodyInvalid as error:
        raise APIError(400, "INVALID_BODY", str(error)) from None
    except BodyError as error:
        from ..denial import STATUSES

        raise APIError(STATUSES[error.code], error.code.upper(), str(error)) from None


def _check_parameters(request: Request, *known: str) -> None:
    for name in request.args:
        if name not in known:
            raise APIError(400, "UNKNOWN_PARAMETER", "The query has an unknown parameter.")


def _page(request: Request) -> tuple[int, str | None]:
    """Return `limit` and `before_id` of the query; unknown parameters are refused."""
    _check_parameters(request, "limit", "before_id")
    text = request.args.get("limit", "100")
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not 1 <= int(text) <= 100:
        raise APIError(400, "INVALID_LIMIT", "limit is between 1 and 100.", field="limit")
    return int(text), request.args.get("before_id")


class _Routes:
    """The five calls of a resource, and `rotate`.

    Attributes:
        name: its path and the name of its list.
    """

    name: str

    def table(self, store: Store) -> Any:
        """Return the part of the store that holds it."""
        raise NotImplementedError

    def show(self, record: Any, uri: str) -> Json:
        """Return a record as JSON."""
        raise NotImplementedError

    def list(self, store: Store, request: Request) -> Response:
        """`GET /resource`: a page, the newest first."""
        limit, before_id = _page(request)
        try:
            # One more than asked for tells whether there is another page.
            found = self.table(store).list(limit=min(limit + 1, 100), before_id=before_id)
        except KeyError:
            raise APIError(
                400, "UNKNOWN_BEFORE_ID", "There never was a record of that id.", field="before_id"
            ) from None
        base = request.root_url.rstrip("/") + f"/{self.name}"
        page = found[:limit]
        more = len(found) > limit or (limit == 100 and len(page) == 100)
        following = f"{base}?before_id={page[-1].id}&limit={limit}" if more else None
        return _json(
            {
                self.name: [self._document(record, request) for record in page],
                "uri": base,
                "next_page_uri": following,
            }
        )

    def get(self, store: Store, request: Request, id_: str) -> Response:
        """`GET /resource/{id}`."""
        try:
            record = self.table(store).get(id_)
        except KeyError:
            raise not_found(id_) from None
        return _json(self._document(record, request))

    def delete(self, store: Store, request: Request, id_: str) -> Response:
        """`DELETE /resource/{id}`: 204, and 404 the second time."""
        if not self.table(store).delete(id_):
            raise not_found(id_)
        response = Response(status=204)
        del response.headers["Content-Type"]
        return response

    def _document(self, record: Any, request: Request) -> Json:
        return self.show(record, f"{request.root_url.rstrip('/')}/{self.name}/{record.id}")

    def _changed(self, change: Callable[[], Any], request: Request, status: int = 200) -> Response:
        """Answer with the record that `change` returns, or what the store says against it."""
        try:
            result = change()
        except KeyError:
            raise not_found("") from None
        except ValueError as error:
            raise out_of_bounds(error) from None
        record, token = result if isinstance(result, tuple) else (result, None)
        document = self._document(record, request)
        if token is not None:
            document["token"] = token
        response = _json(document, status)
        if status == 201:
            response.headers["Location"] = document["uri"]
        return response


class _KeyRoutes(_Routes):
    name = KEYS

    def table(self, store: Store) -> Any:
        return store.keys

    def show(self, record: Any, uri: str) -> Json:
        return fields.key_document(record, uri)

    def create(self, store: Store, request: Request) -> Response:
        values = fields.read(_body(request), fields.KEY_FIELDS)
        return self._changed(lambda: store.keys.create(**values), request, 201)

    def update(self, store: Store, request: Request, id_: str) -> Response:
        values = fields.read(_body(request), fields.KEY_CHANGES)
        return self._changed(lambda: store.keys.update(id_, **values), request)

    def rotate(self, store: Store, request: Request, id_: str) -> Response:
        values = fields.read(_body(request, optional=True), fields.GRACE)
        return self._changed(lambda: store.keys.rotate(id_, **values), request)


class _ProviderKeyRoutes(_Routes):
    name = PROVIDER_KEYS

    def table(self, store: Store) -> Any:
        return store.provider_keys

    def show(self, record: Any, uri: str) -> Json:
        return fields.provider_key_document(record, uri)

    def create(self, store: Store, request: Request) -> Response:
        values = fields.read(_body(request), fields.PROVIDER_KEY_FIELDS, ("provider", "secret"))
        return self._changed(lambda: store.provider_keys.create(**values), request, 201)

    def update(self, store: Store, request: Request, id_: str) -> Response:
        values = fields.read(_body(request), fields.PROVIDER_KEY_CHANGES)
        return self._changed(lambda: store.provider_keys.update(id_, **values), request)

    def rotate(self, store: Store, request: Request, id_: str) -> Response:
        values = fields.read(_body(request), fields.NEW_SECRET, ("secret",))
        return self._changed(lambda: store.provider_keys.rotate(id_, **values), request)


def _resource(name: str, routes: Any) -> list[Rule]:
    one = f"/{name}/<string:id_>"
    return [
        Rule(f"/{name}", endpoint=routes.create, methods=["POST"]),
        Rule(f"/{name}", endpoint=routes.list, methods=["GET"]),
        Rule(one, endpoint=routes.get, methods=["GET"]),
        Rule(one, endpoint=routes.update, methods=["PATCH"]),
        Rule(one, endpoint=routes.delete, methods=["DELETE"]),
        Rule(f"{one}/rotate", endpoint=routes.rotate, methods=["POST"]),
    ]
