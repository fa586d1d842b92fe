"""Importing one class imports only what that class needs (RUN-1)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("requests", "urllib3", "cryptography", "yaml", "click", "rich", "gunicorn", "sqlite3")

CLASSES = [
    pytest.param("stack", (*HEAVY, "werkzeug", "ssl", "socket"), id="stack"),
    pytest.param("ClientAddress", (*HEAVY, "werkzeug", "ssl"), id="ClientAddress"),
    pytest.param("IPAllowlist", (*HEAVY, "werkzeug", "ssl"), id="IPAllowlist"),
    pytest.param("KeyAuth", (*HEAVY, "werkzeug", "ssl"), id="KeyAuth"),
    pytest.param("RateLimiter", (*HEAVY, "werkzeug", "ssl"), id="RateLimiter"),
    pytest.param("HeaderRewriter", (*HEAVY, "werkzeug", "ssl", "socket"), id="HeaderRewriter"),
    pytest.param("UpstreamForwarder", HEAVY, id="UpstreamForwarder"),
    pytest.param("open_store", tuple(n for n in HEAVY if n != "sqlite3"), id="open_store"),
]


@pytest.mark.parametrize(("name", "unwanted"), CLASSES)
def test_a_class_alone_imports_only_what_it_needs(name: str, unwanted: tuple[str, ...]) -> None:
    """RUN-1: a fresh interpreter that imports one name has none of another part's modules."""
    code = (
        f"import json, sys; from aigw_middleware import {name}; print(json.dumps([*sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(run.stdout)) & set(unwanted)


def test_the_package_alone_imports_no_middleware() -> None:
    """`import aigw_middleware` costs nothing of the parts that nobody has asked for."""
    code = "import sys, aigw_middleware; print([m for m in sys.modules if 'aigw_middleware.' in m])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(run.stdout) == [
        "aigw_middleware._options",
        "aigw_middleware._paths",
        "aigw_middleware.environ",
        "aigw_middleware.stack",
    ]


def test_every_public_name_can_be_imported() -> None:
    """Each name of `__all__` is there, once, and shows in `dir`."""
    import aigw_middleware

    assert len(set(aigw_middleware.__all__)) == len(aigw_middleware.__all__)
    for name in aigw_middleware.__all__:
        assert getattr(aigw_middleware, name) is not None
    assert set(aigw_middleware.__all__) <= set(dir(aigw_middleware))
    assert callable(aigw_middleware.stack)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """A misspelt name is told by name."""
    import aigw_middleware

    with pytest.raises(AttributeError, match="RateLimitr"):
        _ = aigw_middleware.RateLimitr  # type: ignore[attr-defined]
