"""Send requests through a `requests` transport adapter, for proxies, client certificates, tests.

Only the adapter is used, no Session: so there are no redirects, cookies, netrc or proxy
variables. Two things are weaker than with the own transport: a peer that trickles its headers
is bounded a byte, not a head, and percent-encodings reach the wire in upper case (urllib3).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError
from urllib3.util import SKIP_HEADER

from ..errors import UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from .transport import Request, Response, Timeouts, shutdown

_RECEIVE = 64 * 1024


class AdapterTransport:
    """Sends requests through `adapter`; see `Transport` for the contract."""

    def __init__(self, adapter: BaseAdapter) -> None:
        self._adapter = adapter

    def send(self, request: Request, timeouts: Timeouts, deadline: float) -> Response:
        """Send a request and return the answer's head."""
        body = _Tracked(request.body)
        left = max(0.001, deadline - time.monotonic())
        try:
            response = self._adapter.send(
                self._prepared(request, body),
                stream=True,
                timeout=(min(timeouts.connect, left), min(timeouts.first_byte, left)),
                verify=True,
                cert=None,
                proxies={},
            )
        except requests.ConnectTimeout:
            raise UpstreamTimeout("connecting to the upstream took too long") from None
        except requests.Timeout:
            raise UpstreamTimeout("the upstream did not answer in time", sent=True) from None
        except (requests.RequestException, HTTPError) as error:
            sent = body.begun or (request.length == 0 and not _not_connected(error))
            raise UpstreamUnreachable(
                f"the upstream cannot be reached: {type(error).__name__}", sent=sent
            ) from None
        return _AdapterResponse(response)

    def _prepared(self, request: Request, body: _Tracked) -> requests.PreparedRequest:
        """Make a prepared request by hand: preparing would edit the URL and the headers."""
        headers = dict(request.headers)
        names = {name.lower() for name in headers}
        if isinstance(self._adapter, HTTPAdapter):
            # Else urllib3 and http.client add their own.
            for name in ("User-Agent", "Accept-Encoding"):
                if name.lower() not in names:
                    headers[name] = SKIP_HEADER
        if request.length:
            headers["Content-Length"] = str(request.length)
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = request.url
        prepared.headers = CaseInsensitiveDict(headers)
        prepared.body = None if request.length == 0 else body  # type: ignore[assignment]
        return prepared


class _Tracked:
    """A body that knows whether sending it has begun."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = blocks
        self.begun = False

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.begun = True
            if block:
                yield block


def _not_connected(error: BaseException) -> bool:
    """Whether `error` says that no connection was made."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, NewConnectionError)


class _AdapterResponse:
    """The answer of an adapter; see `Response` for the contract."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._raw: Any = response.raw
        self.status = response.status_code
        self.reason = response.reason or ""
        headers = getattr(self._raw, "headers", None) or response.headers
        self.headers = [(str(name), str(value)) for name, value in headers.items()]

    @property
    def done(self) -> bool:
        """Whether the body's end was read; without a length only an empty read tells."""
        return getattr(self._raw, "length_remaining", None) == 0

    def read(self, seconds: float) -> bytes:
        """Return what has come next; empty at the end."""
        if seconds <= 0:
            raise UpstreamTimeout("the upstream did not answer in time")
        sock = _socket_of(self._raw)
        if sock is not None:
            sock.settimeout(seconds)
        try:
            if isinstance(self._raw, HTTPResponse):
                return self._raw.read1(_RECEIVE, decode_content=False) or b""
            data: bytes = self._raw.read(_RECEIVE)  # any file will do for a test's adapter
            return data or b""
        except (ReadTimeoutError, TimeoutError):
            raise UpstreamTimeout("the upstream did not answer in time") from None
        except (HTTPError, OSError, requests.RequestException) as error:
            raise UpstreamBroken("the upstream's answer broke off") from error

    def shutdown(self) -> None:
        """Wake a `read` of another thread, where the socket can be found."""
        sock = _socket_of(self._raw)
        if sock is not None:
            shutdown(sock)

    def close(self) -> None:
        """Give the connection back after the end, else close it."""
        self._response.close()


def _socket_of(raw: Any) -> Any:
    """Return the socket below a urllib3 response, None where there is none to be found."""
    try:
        return raw._fp.fp.raw._sock
    except AttributeError:
        return None
