"""`HeaderRewriter` (HDR-1, HDR-3, HDR-4)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import HeaderRewriter

from .support import Inner, call


def request_after(changes: dict[str, Any], **headers: str) -> dict[str, str]:
    """Return the request headers that the app sees."""
    inner = Inner()
    call(HeaderRewriter(inner, request=changes), HTTP_HOST="h", **headers)
    return {
        key: value
        for key, value in inner.environs[0].items()
        if (key.startswith("HTTP_") and key != "HTTP_HOST") or key == "CONTENT_TYPE"
    }


def response_after(changes: dict[str, Any], *headers: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the response headers that the server sees, without the inner app's own."""
    answer = call(HeaderRewriter(Inner(headers=headers), response=changes))
    return [header for header in answer.headers if header[0] != "Content-Type"]


REQUESTS = [
    pytest.param({"remove": ["X-A"]}, {"HTTP_X_A": "1", "HTTP_X_B": "2"}, {"HTTP_X_B": "2"}, id="remove"),
    pytest.param({"remove": ["x_a"]}, {"HTTP_X_A": "1"}, {}, id="remove in another spelling"),
    pytest.param({"remove": ["Content-Type"]}, {}, {}, id="HDR-4: remove what is not there"),
    pytest.param({"remove": ["Content-Type"]}, {"CONTENT_TYPE": "a/b"}, {}, id="Content-Type"),
    pytest.param({"rename": {"X-A": "X-B"}}, {"HTTP_X_A": "1"}, {"HTTP_X_B": "1"}, id="rename"),
    pytest.param({"rename": {"X-A": "X-B"}}, {}, {}, id="HDR-4: rename what is not there"),
    pytest.param(
        {"rename": {"X-A": "X-B"}}, {"HTTP_X_A": "1", "HTTP_X_B": "2"}, {"HTTP_X_B": "1"},
        id="the renamed one takes the place",
    ),
    pytest.param(
        {"rename": {"X-A": "X-B", "X-B": "X-A"}}, {"HTTP_X_A": "1", "HTTP_X_B": "2"},
        {"HTTP_X_A": "2", "HTTP_X_B": "1"}, id="two are swapped",
    ),
    pytest.param({"set": {"X-A": "9"}}, {"HTTP_X_A": "1"}, {"HTTP_X_A": "9"}, id="HDR-3: set"),
    pytest.param({"set": {"X-A": lambda e: None}}, {"HTTP_X_A": "1"}, {}, id="set to nothing"),
    pytest.param({"add": {"X-A": "2"}}, {"HTTP_X_A": "1"}, {"HTTP_X_A": "1, 2"}, id="add"),
    pytest.param({"add": {"X-A": "2"}}, {}, {"HTTP_X_A": "2"}, id="add the first"),
    pytest.param({"add": {"Cookie": "b=2"}}, {"HTTP_COOKIE": "a=1"}, {"HTTP_COOKIE": "a=1; b=2"}, id="cookie"),
    pytest.param(
        {"add": {"X-A": "4"}, "set": {"X-A": "3"}, "rename": {"X-B": "X-A"}, "remove": ["X-A"]},
        {"HTTP_X_A": "1", "HTTP_X_B": "2"}, {"HTTP_X_A": "3, 4"}, id="in their fixed order",
    ),
    pytest.param(
        {"set": {"X-Path": lambda environ: environ["PATH_INFO"]}}, {}, {"HTTP_X_PATH": "/"},
        id="a callable",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "before", "after"), REQUESTS)
def test_requests(changes: Any, before: dict[str, str], after: dict[str, str]) -> None:
    """The app sees the headers as the changes leave them."""
    assert request_after(changes, **before) == after


RESPONSES = [
    pytest.param({"remove": ["x-a"]}, [("X-A", "1"), ("X-a", "2"), ("X-B", "3")], [("X-B", "3")], id="remove"),
    pytest.param(
        {"rename": {"X-A": "X-B"}}, [("X-B", "0"), ("X-A", "1"), ("x-a", "2")],
        [("X-B", "1"), ("X-B", "2")], id="rename each",
    ),
    pytest.param({"rename": {"X-A": "X-B"}}, [("X-B", "0")], [("X-B", "0")], id="HDR-4: none to rename"),
    pytest.param(
        {"rename": {"X-A": "X-B", "X-B": "X-A"}}, [("X-A", "1"), ("X-B", "2")],
        [("X-B", "1"), ("X-A", "2")], id="swap",
    ),
    pytest.param({"set": {"X-A": "9"}}, [("X-A", "1"), ("x_a", "2")], [("X-A", "9")], id="HDR-3: set"),
    pytest.param({"add": {"Set-Cookie": "b"}}, [("Set-Cookie", "a")], [("Set-Cookie", "a"), ("Set-Cookie", "b")], id="add"),
    pytest.param({"set": {"X-A": lambda e: None}}, [("X-A", "1")], [], id="set to nothing"),
    pytest.param(
        {"set": {"X-M": lambda environ: environ["REQUEST_METHOD"]}}, [], [("X-M", "GET")], id="callable"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "before", "after"), RESPONSES)
def test_responses(changes: Any, before: Any, after: Any) -> None:
    """The server sees the headers as the changes leave them, duplicates kept apart."""
    assert response_after(changes, *before) == after


INJECTIONS = ["a\r\nX-Admin: 1", "a\nb", "a\rb", "a\0b", "a\x7fb", "snow\u2603", 5, b"x"]


@pytest.mark.parametrize("value", INJECTIONS, ids=repr)
def test_a_callable_cannot_inject_a_header(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """HDR-1: what could not be a value is no header at all, on either side, and is logged."""
    changes = {"set": {"X-A": lambda environ: value}, "add": {"X-B": lambda environ: value}}
    assert request_after(changes, HTTP_X_A="client") == {}
    assert response_after(changes, ("X-A", "theirs")) == []
    assert "X-A".lower() in caplog.text.lower()
    assert "Admin" not in caplog.text


@given(st.text())
def test_no_value_ever_makes_a_second_header(text: str) -> None:
    """Whatever a callable returns, the app sees one value without line ends, or none."""
    seen = request_after({"set": {"X-A": lambda environ: text}})
    assert set(seen) <= {"HTTP_X_A"}
    assert not set("\r\n\0") & set("".join(seen.values()))


WRONG = [
    pytest.param({"set": {"X A": "1"}}, id="a space in a name"),
    pytest.param({"set": {"": "1"}}, id="an empty name"),
    pytest.param({"set": {"X-A\r\nB": "1"}}, id="CR LF in a name"),
    pytest.param({"set": {"X-A": "1\r\nX-B: 2"}}, id="HDR-1: CR LF in a value"),
    pytest.param({"set": {"X-A": "1\0"}}, id="NUL"),
    pytest.param({"set": {"X-A": "snow\u2603"}}, id="not Latin-1"),
    pytest.param({"set": {"X-A": 5}}, id="a number"),
    pytest.param({"set": {"X-A": None}}, id="None"),
    pytest.param({"set": {"Connection": "close"}}, id="hop-by-hop"),
    pytest.param({"remove": ["Transfer-Encoding"]}, id="hop-by-hop removed"),
    pytest.param({"rename": {"X-A": "Upgrade"}}, id="renamed to hop-by-hop"),
    pytest.param({"add": {"Content-Length": "5"}}, id="Content-Length"),
    pytest.param({"set": {"Content_Length": "5"}}, id="Content_Length"),
    pytest.param({"set": {"X-User-Id": "1", "X_User_Id": "2"}}, id="two names that fold into one"),
    pytest.param({"rename": {"X-A": "X-C", "X-B": "X-C"}}, id="two get one name"),
    pytest.param({"rename": {"X-A": "X-C", "x-a": "X-D"}}, id="one renamed twice"),
    pytest.param({"sett": {"X-A": "1"}}, id="an unknown operation"),
    pytest.param({"set": ["X-A"]}, id="a list where a mapping belongs"),
    pytest.param(5, id="a number"),
    pytest.param(["X-A"], id="a list"),
]


@pytest.mark.parametrize("option", ["request", "response"])
@pytest.mark.parametrize("changes", WRONG)
def test_wrong_options_are_named(option: str, changes: Any) -> None:
    """A change that cannot be made is a ValueError when the layer is built."""
    with pytest.raises(ValueError, match=f"^{option}: "):
        HeaderRewriter(Inner(), **{option: changes})


def test_without_changes_nothing_is_touched() -> None:
    """No options, no changes; a name alone in `remove` may be a text."""
    inner = Inner(headers=[("X-A", "1")])
    answer = call(HeaderRewriter(inner), HTTP_X_B="2")
    assert (answer.headers["X-A"], inner.environs[0]["HTTP_X_B"]) == ("1", "2")
    assert request_after({"remove": "X-B"}, HTTP_X_B="2") == {}
