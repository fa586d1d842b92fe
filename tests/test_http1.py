"""The strict reader of HTTP/1.1 answers, against a slow and plain second reading."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware.forwarding.http1 import ChunkedReader, ProtocolError, framing, parse_head

from .support import unchunk

GOOD = [
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b", (200, "OK", [("A", "b")], True), id="plain"),
    pytest.param(b"HTTP/1.1 200\r\nA: b", (200, "", [("A", "b")], True), id="no reason"),
    pytest.param(b"HTTP/1.1 200 ", (200, "", [], True), id="an empty reason"),
    pytest.param(b"HTTP/1.0 200 OK", (200, "OK", [], False), id="HTTP/1.0"),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive",
        (200, "OK", [("Connection", "keep-alive")], True), id="HTTP/1.0 kept alive",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nconnection: x, Close", (200, "OK", [("connection", "x, Close")], False),
        id="closed",
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nA:\t b c \t", (200, "OK", [("A", "b c")], True), id="white space"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA:", (200, "OK", [("A", "")], True), id="an empty value"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nA: 1\r\nA: 2", (200, "OK", [("A", "1"), ("A", "2")], True), id="duplicates"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: \xe9", (200, "OK", [("A", "é")], True), id="Latin-1"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "head"), GOOD)
def test_a_head_is_read(data: bytes, head: object) -> None:
    """Status, reason, headers in their order, and whether the connection goes on."""
    assert tuple(parse_head(data)) == head


BAD = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"HTTP/2 200 OK", id="another version"),
    pytest.param(b"HTTP/1.1 20 OK", id="two digits"),
    pytest.param(b"HTTP/1.1 600 OK", id="no such class"),
    pytest.param(b"HTTP/1.1  200 OK", id="two spaces"),
    pytest.param(b"<html>", id="something else"),
    pytest.param(b"HTTP/1.1 200 OK\nA: b", id="a bare line feed"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\n C: d", id="a bare line feed within"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\r\n c", id="folding"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA : b", id="a space before the colon"),
    pytest.param(b"HTTP/1.1 200 OK\r\n: b", id="no name"),
    pytest.param(b"HTTP/1.1 200 OK\r\nno colon", id="no colon"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\0c", id="a NUL"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b\rc", id="a bare CR"),
]


@pytest.mark.parametrize("data", BAD)
def test_a_malformed_head_is_refused(data: bytes) -> None:
    """What two readers could take differently is no answer."""
    with pytest.raises(ProtocolError):
        parse_head(data)


FRAMES = [
    pytest.param("GET", b"Content-Length: 5", (False, 5), id="length"),
    pytest.param("GET", b"Transfer-Encoding: Chunked", (True, None), id="chunked"),
    pytest.param("GET", b"X: y", (False, None), id="until the end"),
    pytest.param("HEAD", b"Content-Length: 5", (False, 0), id="HEAD"),
    pytest.param("GET", b"Content-Length: 5\r\nContent-Length: 5", (False, 5), id="twice the same"),
    pytest.param("GET", b"Content-Length: 5, 5", (False, 5), id="a list of the same"),
    pytest.param("GET", b"Content-Length: 5\r\nContent-Length: 7", None, id="FWD-3: two lengths"),
    pytest.param("GET", b"Content-Length: 5\r\nTransfer-Encoding: chunked", None, id="FWD-3: both"),
    pytest.param("GET", b"Content-Length: +5", None, id="a sign"),
    pytest.param("GET", b"Content-Length: 5_0", None, id="an underscore"),
    pytest.param("GET", b"Content-Length: ", None, id="an empty length"),
    pytest.param("GET", b"Transfer-Encoding: gzip, chunked", None, id="another coding"),
    pytest.param("GET", b"Transfer-Encoding: chunked, chunked", None, id="chunked twice"),
    pytest.param("GET", b"Transfer-Encoding: identity", None, id="identity"),
]


@pytest.mark.parametrize(("method", "header", "expected"), FRAMES)
def test_how_a_body_ends(method: str, header: bytes, expected: object) -> None:
    """RFC 9112 §6.3, and a refusal where two rules speak at once."""
    head = parse_head(b"HTTP/1.1 200 OK\r\n" + header)
    if expected is None:
        with pytest.raises(ProtocolError):
            framing(method, head)
    else:
        assert tuple(framing(method, head)) == expected


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(status: int) -> None:
    """FWD-4: 204 and 304 have none, whatever length they name."""
    head = parse_head(f"HTTP/1.1 {status} X\r\nContent-Length: 5".encode())
    assert framing("GET", head) == (False, 0)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


chunks = st.lists(st.binary(min_size=1, max_size=50), max_size=6)


@given(
    chunks, st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from([b"", b";x=y", b" ; a"])
)
def test_chunks_are_read_however_they_are_cut(
    parts: list[bytes], cuts: list[int], extension: bytes
) -> None:
    """The data is that of a plain reading, for any cut of the bytes; what is behind is kept."""
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    body += b"0\r\nTrailer: x\r\n\r\n"
    reader = ChunkedReader()
    data = b"".join(reader.feed(piece) for piece in pieces(body + b"rest", cuts))
    plain = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    assert data == unchunk(plain)
    assert reader.done
    assert b"rest".startswith(reader.rest)


BROKEN = [
    pytest.param(b"zz\r\n", id="FWD-2: no number"),
    pytest.param(b"0x5\r\nabcde\r\n", id="a prefix"),
    pytest.param(b"+5\r\nabcde\r\n", id="a sign"),
    pytest.param(b"5_0\r\n", id="an underscore"),
    pytest.param(b" 5\r\nabcde\r\n", id="a space before"),
    pytest.param(b"\r\n", id="nothing"),
    pytest.param(b"5\nabcde\r\n", id="a bare line feed"),
    pytest.param(b"1\r\nab\r\n", id="more than announced"),
    pytest.param(b"1\r\na\n\n", id="a bad end"),
    pytest.param(b"f" * 20 + b"\r\n", id="a size that overflows"),
    pytest.param(b"1" * 5000, id="an endless line"),
    pytest.param(b"0\r\nno trailer\r\n\r\n", id="a bad trailer"),
    pytest.param(b"0\r\n" + b"A: b\r\n" * 20_000, id="too many trailers"),
]


@pytest.mark.parametrize("data", BROKEN)
@pytest.mark.parametrize("step", [1, 10_000])
def test_broken_chunks_are_noticed(data: bytes, step: int) -> None:
    """FWD-2: a frame that is not by the grammar breaks the body; data before it is handed out."""
    reader = ChunkedReader()
    data = b"3\r\nabc\r\n" + data
    found = b"".join(
        reader.feed(data[start : start + step])
        for start in range(0, len(data), step)
        if reader.broken is None
    )
    assert reader.broken is not None
    assert not reader.done
    assert found.startswith(b"abc")


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_readers(data: bytes) -> None:
    """Whatever a peer sends, it is read or refused."""
    ChunkedReader().feed(data)
    try:
        framing("GET", parse_head(data))
    except ProtocolError:
        return
