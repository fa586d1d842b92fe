"""Reading documents: JSON and YAML, their places, and what is refused (POL-1, POL-2, POL-4)."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware.policy.document import Node, read
from aigw_middleware.policy.mistakes import PolicyError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([None, 1, "\t"]))
def test_json_reads_as_what_it_is(value: Any, indent: Any) -> None:
    """Whatever JSON writes is read, also indented with tabs, which YAML refuses."""
    text = json.dumps(value, indent=indent)
    if not isinstance(value, dict | list):
        text = f"[{text}]"
        value = [value]
    assert read(text, "x").plain() == value


def test_yaml_reads_by_the_core_schema() -> None:
    """YAML 1.2: `yes` is a text, a date is a text, `0o17` and `0x1f` are numbers."""
    text = """
    a: yes
    b: 2024-01-01
    c: 0o17
    d: 0x1f
    e: 1.5e3
    f: ~
    g: "1"
    h: 'true'
    i: true
    j: [1, 2]
    k: |
      two
      lines
    l: 1_000
    12: number
    """
    assert read(text, "x").plain() == {
        "a": "yes", "b": "2024-01-01", "c": 15, "d": 31, "e": 1500.0, "f": None, "g": "1",
        "h": "true", "i": True, "j": [1, 2], "k": "two\nlines\n", "l": "1_000", "12": "number",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a:\n  - b: 1\n    c: x\n", '{"a": [\n {"b": 1,\n "c": "x"}]}'])
def test_every_value_knows_its_place(text: str) -> None:
    """Line and column of values and of names, from 1."""
    node = read(text, "x")
    entry: Any = node.members["a"].value
    first: Node = entry[0]
    line = {"a:\n": 3}.get(text[:3], 3)
    assert first.keys["c"][0] == line
    assert first.members["c"].line == line
    row = text.splitlines()[line - 1]
    assert row[first.keys["c"][1] - 1 :].lstrip('"').startswith("c")


BAD = {
    "a tag that runs code": ("a: !!python/object/apply:os.system ['id']", "tags are not read"),
    "a tag of YAML's own": ("a: !!str 1", "tags are not read"),
    "a tag of one's own": ("a: !secret x", "tags are not read"),
    "a merge key": ("a: &x {b: 1}\nc:\n  <<: *x\n", "merge keys"),
    "a key twice in YAML": ("a: 1\nb: 2\na: 3\n", '"a" stands here twice; first in line 1'),
    "a key twice in JSON": ('{"a": 1, "b": {"c": 1, "c": 2}}', '"c" stands here twice'),
    "a key that is a list": ("? [a]\n: b\n", "a name has to be a text"),
    "a key that is nothing": ("? \n: b\n", "a name has to be a text"),
    "two documents": ("a: 1\n---\nb: 2\n", "a second document begins here"),
    "nothing": ("", "the document is empty"),
    "a comment alone": ("# nothing\n", "the document is empty"),
    "no YAML": ("a: [1, 2", "this is no YAML"),
    "a tab in YAML": ("a:\n\t- b\n", "this is no YAML"),
    "no JSON": ('{"a": 1 "b": 2}', "this is no JSON"),
    "a bracket that does not match": ('{"a": [1}', "this is no JSON"),
    "more behind JSON": ('{"a": 1} x', "this is no JSON"),
    "an alias of nothing": ("a: *b\n", "undefined alias|stands for nothing"),
    "an alias within itself": ("a: &x [*x]\n", "alias"),
    "too deep in YAML": ("[" * 70 + "]" * 70, "nested too deeply"),
    "too deep in JSON": ('{"a":' * 70 + "1" + "}" * 70, "nested too deeply"),
    "too large": ("a: " + "x" * (1 << 20), "larger than 1 MB"),
    "no UTF-8": (b"a: \xff\xfe", "not in UTF-8"),
    "a control character": ("a: \x00", "this is no YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str) -> None:
    """POL-1, POL-4: with a place, and never a traceback."""
    text, message = BAD[name]
    with pytest.raises(PolicyError, match=message) as error:
        read(text, "doc.yaml")
    assert str(error.value).startswith("doc.yaml:")


def test_aliases_cannot_stand_for_a_large_document() -> None:
    """POL-2: nine levels of ten are refused, in little time and memory."""
    lines = ["a: &a0 [x]"] + [
        f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)
    ]
    tracemalloc.start()
    before = time.process_time()
    with pytest.raises(PolicyError, match="stands for too many values"):
        read("\n".join(lines), "x")
    assert time.process_time() - before < 1
    assert tracemalloc.get_traced_memory()[1] < 50 * 1024 * 1024
    tracemalloc.stop()


def test_an_alias_stands_for_what_it_names() -> None:
    """A few of them are fine."""
    assert read("a: &x [1]\nb: *x\n", "x").plain() == {"a": [1], "b": [1]}


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    """Whatever stands there: a value, or a PolicyError."""
    with suppress(PolicyError):
        read(text, "x")
