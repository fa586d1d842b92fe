"""What a Traffic Policy document costs against the same stack written in Python, in-process."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from aigw_middleware import HeaderRewriter, IPAllowlist, RateLimiter, TrafficPolicy, stack

from .layers import hello, medians_of, request
from .table import print_table

EXPRESSIONS = [
    "req.headers['x-team'][0] == 'nobody'",
    "req.method == 'DELETE' && req.url.path.startsWith('/v1/files')",
    "inCidrRange(conn.client_ip, '192.0.2.0/24')",
    "'x-debug' in req.headers",
    "req.url.query.contains('debug')",
]
_DENY = {"type": "deny"}
_LIMIT = {
    "name": "n", "algorithm": "sliding_window", "capacity": 2_000_000_000, "rate": "60s",
    "bucket_key": ["req.headers['authorization']"],
}  # fmt: skip
_PLAIN = [
    {"type": "restrict-ips", "config": {"allow": ["10.0.0.0/8"]}},
    {"type": "rate-limit", "config": _LIMIT},
    {"type": "add-headers", "config": {"headers": {"x-a": "1"}}},
    {"type": "remove-headers", "config": {"headers": ["x-b"]}},
    {"type": "add-headers", "config": {"headers": {"x-c": "1"}}},
]


def policy(*rules: Any) -> Any:
    """Return the layer of a document."""
    return TrafficPolicy.parse(json.dumps({"on_http_request": list(rules)}))(hello)


def in_python() -> Any:
    """Return the stack that the document with ten rules describes, written by hand."""

    def guard(app: Any) -> Any:
        networks = IPAllowlist(hello, ["192.0.2.0/24"])

        def layer(environ: Any, start_response: Any) -> Any:
            if (
                environ.get("HTTP_X_TEAM") == "nobody"
                or (
                    environ["REQUEST_METHOD"] == "DELETE"
                    and environ["PATH_INFO"][:9] == "/v1/files"
                )
                or networks.judge(environ) is None
                or "HTTP_X_DEBUG" in environ
                or "debug" in environ["QUERY_STRING"]
            ):
                start_response("403 Forbidden", [])
                return []
            return app(environ, start_response)

        return layer

    return stack(
        hello,
        partial(IPAllowlist, allow=["10.0.0.0/8"]),
        partial(
            RateLimiter,
            limits="2000000000/60s",
            by=lambda environ: environ.get("HTTP_AUTHORIZATION", ""),
        ),
        partial(HeaderRewriter, request={"add": {"x-a": "1"}}),
        partial(HeaderRewriter, request={"remove": ["x-b"]}),
        partial(HeaderRewriter, request={"add": {"x-c": "1"}}),
        guard,
    )


def run(*, quick: bool) -> None:
    """Measure, and print the table."""
    rounds, count = (3, 300) if quick else (15, 1500)
    conditional = [{"expressions": [text], "actions": [_DENY]} for text in EXPRESSIONS]
    added = {"type": "add-headers", "config": {"headers": {"x-a": "1"}}}
    apps = {
        "no layer": hello,
        "a document with one rule": policy(added),
        "with eleven rules, no expression": policy(*[added] * 11),
        "with one rule and five false expressions": policy(added, *conditional),
        "ten rules, five of them with an expression": policy(*_PLAIN, *conditional),
        "the same stack in Python": in_python(),
    }
    environ = request("gateway-key") | {"HTTP_X_TEAM": "search"}
    medians = medians_of(apps, environ, rounds, count)
    base = medians["no layer"]
    one = medians["a document with one rule"]
    written = medians["the same stack in Python"] - base
    rule = (medians["with eleven rules, no expression"] - one) / 10
    expression = (medians["with one rule and five false expressions"] - one) / 5
    print_table(
        "What a document costs (targets: a rule without an expression <= 3 us, an expression "
        f"<= 40 us; here {rule:.1f} and {expression:.1f})",
        ["", "us a request", "us added", "x the stack in Python"],
        [[name, value, value - base, (value - base) / written] for name, value in medians.items()],
    )
