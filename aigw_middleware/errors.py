"""The errors that a caller may handle.

::

    GatewayError
    ├── StoreUnavailable      an engine (records or counters) gave no answer in time
    ├── BodyError             the request's body cannot be used
    │   ├── BodyTooLarge      more bytes than the bound
    │   ├── BodyIncomplete    it broke off
    │   ├── BodyStalled       no byte came for too long
    │   ├── LengthRequired    chunked, under a server that cannot tell its end
    │   └── BodyInvalid       not what its path requires
    ├── KeyRevoked            the key of an open stream is no longer good
    ├── LimitReached          an answer has used more than its limits give
    ├── ClientLeft            the client hung up while its answer was coming
    └── UpstreamError         the provider gave no (whole) answer
        ├── UpstreamUnreachable   no connection, or it broke the protocol
        ├── UpstreamTimeout       it took too long
        └── UpstreamBroken        its answer broke off after it had begun

The text of an error never holds a secret, a body or a header's value.
"""

from __future__ import annotations

import errno


class GatewayError(Exception):
    """Base of every error of this package that is not a wrong option (`ValueError`)."""


class StoreUnavailable(GatewayError):
    """An engine could not answer: nothing can be said of the key or the limit.

    Attributes:
        engine: `"records"` (keys, usage) or `"counters"` (limits).
    """

    def __init__(self, message: str = "the engine is unavailable", *, engine: str = "records"):
        super().__init__(message)
        self.engine = engine


class KeyRevoked(GatewayError):
    """The key under which a stream was opened was deleted, disabled or has expired."""


class LimitReached(GatewayError):
    """An answer that was coming has used more than its limits give."""


class ClientLeft(GatewayError, ConnectionResetError):
    """The client closed the connection while its answer was still coming.

    A `ConnectionResetError` as well, as servers themselves raise it: they know that nobody is
    left to be told, and log no traceback.
    """

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the client has closed the connection")


class BodyError(GatewayError):
    """The request's body cannot be used; `code` is the refusal that says so."""

    code = "invalid_request"


class BodyTooLarge(BodyError):
    """The request's body has more bytes than the bound."""

    code = "request_too_large"


class BodyIncomplete(BodyError):
    """The request's body broke off, or its framing is wrong."""


class BodyStalled(BodyError):
    """No byte of the request's body came for too long."""

    code = "request_timeout"


class LengthRequired(BodyError):
    """A chunked body under a server that cannot tell where it ends."""

    code = "length_required"


class BodyInvalid(BodyError):
    """The request's body is whole, but not what its path requires."""


class UpstreamError(GatewayError):
    """The provider gave no answer, or not a whole one.

    Attributes:
        sent: whether the provider may have processed the request: a byte of its body (or the
            whole of a request that has none) went out.
    """

    def __init__(self, message: str, *, sent: bool = False):
        super().__init__(message)
        self.sent = sent


class UpstreamUnreachable(UpstreamError):
    """No connection was made, or the peer broke HTTP before the first byte of its answer."""


class UpstreamTimeout(UpstreamError):
    """Connecting, the first byte or the whole answer took too long."""


class UpstreamBroken(UpstreamError):
    """An answer that had begun did not reach its end."""
