"""The request's body: read once, bounded, strict."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware.body import MEMORY, whole
from aigw_middleware.body import strict_json as read_json
from aigw_middleware.errors import (
    BodyIncomplete,
    BodyInvalid,
    BodyStalled,
    BodyTooLarge,
    LengthRequired,
)

from .support import make_environ

SIZES = [0, 1, 65_536, MEMORY, MEMORY + 1, 3 * MEMORY]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_read_once_and_still_there(size: int, chunked: bool) -> None:
    """In memory or on disk: whole, as often as wanted, and as `wsgi.input` for the app."""
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    extra = {"HTTP_TRANSFER_ENCODING": "chunked"} if chunked else {}
    environ = make_environ(body=data, **extra)
    body = whole(environ, 10 * MEMORY)
    assert whole(environ, 10 * MEMORY) is body
    assert body.size == size
    assert body.read() == data == b"".join(body.blocks()) == b"".join(body.blocks())
    assert environ["wsgi.input"].read() == data
    body.close()


def test_a_body_of_the_bound_is_read_and_one_more_is_not() -> None:
    """FWD-9: `max_bytes` is the last size that passes; with a length nothing is read."""
    assert whole(make_environ(body=b"x" * 10), 10).size == 10
    environ = make_environ(body=b"x" * 11)
    with pytest.raises(BodyTooLarge):
        whole(environ, 10)
    assert environ["wsgi.input"].tell() == 0


def test_a_chunked_body_over_the_bound_is_not_read_on() -> None:
    """FWD-9: without a length it is read no further than the bound and one block."""
    environ = make_environ(body=b"x" * 1_000_000, HTTP_TRANSFER_ENCODING="chunked")
    with pytest.raises(BodyTooLarge):
        whole(environ, 10)
    assert environ["wsgi.input"].tell() <= 65_536


def test_a_second_reader_with_a_smaller_bound_is_told() -> None:
    """A body that was read under a wide bound is still too large under a narrow one."""
    environ = make_environ(body=b"x" * 100)
    whole(environ, 100)
    with pytest.raises(BodyTooLarge):
        whole(environ, 99)


def test_a_body_that_breaks_off() -> None:
    """Fewer bytes than announced: 400, and never taken for whole."""
    environ = make_environ(body=b"abc")
    environ["CONTENT_LENGTH"] = "4"
    with pytest.raises(BodyIncomplete):
        whole(environ, 100)


class Failing(BytesIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def read1(self, size: int | None = -1) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [(TimeoutError(), BodyStalled), (OSError(), BodyIncomplete), (ValueError("bad chunk"), BodyIncomplete)],
)  # fmt: skip
def test_what_a_server_raises_while_reading(error: Exception, expected: type) -> None:
    """A stalled upload is 408, any other failure of the server's reader 400."""
    environ = make_environ(body=b"abc")
    environ["wsgi.input"] = Failing(error)
    with pytest.raises(expected):
        whole(environ, 100)


def test_a_stall_is_bounded_where_the_socket_is_shown() -> None:
    """The client's socket gets a timeout for the read and its own back afterwards."""
    timeouts: list[float | None] = []

    class Sock:
        value: float | None = None

        def gettimeout(self) -> float | None:
            return self.value

        def settimeout(self, value: float | None) -> None:
            timeouts.append(value)
            self.value = value

    environ = make_environ(body=b"abc", **{"gunicorn.socket": Sock()})
    whole(environ, 100)
    assert timeouts == [60.0, None]


def test_a_chunked_body_under_a_server_that_cannot_delimit_it() -> None:
    """Without `wsgi.input_terminated` a chunked body is 411, not read for ever."""
    environ = make_environ(body=b"x", HTTP_TRANSFER_ENCODING="chunked")
    environ["wsgi.input_terminated"] = False
    with pytest.raises(LengthRequired):
        whole(environ, 100)


@pytest.mark.parametrize("length", ["-1", "+5", "5_0", "5, 5", "0x5", "٥", "9" * 30, "abc"])
def test_a_length_that_is_no_number(length: str) -> None:
    """RUN-4: a Content-Length in any but plain digits is 400."""
    environ = make_environ(body=b"12345")
    environ["CONTENT_LENGTH"] = length
    with pytest.raises(BodyIncomplete):
        whole(environ, 100)


NOT_STRICT = [
    pytest.param(b"[" * 100_000, id="MOD-6: deep arrays"),
    pytest.param(b'{"a":' * 100_000, id="MOD-6: deep objects"),
    pytest.param(b'{"a":NaN}', id="MOD-6: NaN"),
    pytest.param(b'{"a":-Infinity}', id="infinity"),
    pytest.param(b'\xef\xbb\xbf{}', id="MOD-6: BOM"),
    pytest.param("{}".encode("utf-16"), id="MOD-6: UTF-16"),
    pytest.param(b'{"a":1,"a":2}', id="MOD-1: a name twice"),
    pytest.param(b'{"a":{"b":1,"b":1}}', id="MOD-1: a name twice within"),
    pytest.param(b'{"a":1,"\\u0061":2}', id="MOD-1: a name twice, once escaped"),
    pytest.param(b'{"a":1e400}', id="MOD-7: too large"),
    pytest.param(b'{"a":' + b"9" * 5000 + b"}", id="MOD-7: too long"),
    pytest.param(b'{"a":1}x', id="something behind it"),
    pytest.param(b'{"a":1,}', id="a trailing comma"),
    pytest.param(b"{'a':1}", id="single quotes"),
    pytest.param(b'{"a":"\n"}', id="a line end in a string"),
    pytest.param(b'{"a":"\xff"}', id="no UTF-8"),
    pytest.param(b"null", id="no object"),
    pytest.param(b"", id="nothing"),
]  # fmt: skip


@pytest.mark.parametrize("data", NOT_STRICT)
def test_json_that_readers_could_take_differently(data: bytes) -> None:
    """It is refused with a message that repeats nothing of it."""
    with pytest.raises(BodyInvalid) as error:
        read_json(data)
    assert len(str(error.value)) < 120


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text(), values, max_size=5))
def test_every_json_object_is_read_as_it_is(document: Any) -> None:
    """What the standard writer writes is read back equal."""
    text = json.dumps(document, ensure_ascii=False)
    data = text.encode("utf-8", "surrogatepass")
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        return
    assert read_json(data) == document


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Whatever a body is, it is an object or `BodyInvalid`."""
    try:
        assert isinstance(read_json(data), dict)
    except BodyInvalid:
        return
