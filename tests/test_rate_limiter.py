"""`RateLimiter` (LIM-1, LIM-5)."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aigw_middleware import ApiKey, RateLimiter, StoreUnavailable, Usage, open_counters, stack
from aigw_middleware.counters.memory import MemoryCounters
from aigw_middleware.limits import holding

from .support import CHAT, Clock, Inner, call, in_child, make_environ


def limiter(limits: Any = "2/min", **options: Any) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    options.setdefault("counters", MemoryCounters(clock=clock))
    return RateLimiter(Inner(), limits, **options), clock


def test_a_request_over_the_limit_is_refused_and_told_when_to_come() -> None:
    """LIM-5: 429 with Retry-After; who comes then is let in."""
    app, clock = limiter("2/min", by="ip")
    assert [call(app, CHAT).status for _ in range(2)] == [200, 200]
    answer = call(app, CHAT)
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    clock.advance(int(answer.headers["Retry-After"]))
    assert call(app, CHAT).status == 200


def test_refused_requests_do_not_push_the_limit_out() -> None:
    """What is refused spends nothing: a client that keeps trying is not held off for ever."""
    app, clock = limiter("1/min", by="ip")
    call(app)
    for _ in range(50):
        assert call(app).status == 429
        clock.advance(1)
    clock.advance(12)
    assert call(app).status == 200


def test_every_answer_tells_what_is_left() -> None:
    """The headers are on 200 and on 429, in both forms."""
    app, _ = limiter("2/min", by="ip", name="demo")
    left = []
    for _ in range(3):
        answer = call(app, CHAT)
        assert answer.headers["RateLimit-Policy"] == '"demo";q=2;w=60'
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        left.append(answer.headers["RateLimit"].split(";")[1])
    assert left == ["r=1", "r=0", "r=0"]


def test_headers_of_a_provider_give_way() -> None:
    """A provider's rate headers are of its account, not of this client's limit."""
    inner = Inner(headers=[("x-ratelimit-limit-requests", "9"), ("RateLimit", "x"), ("X-A", "1")])
    answer = call(RateLimiter(inner, "5/min", by="ip"), CHAT)
    assert answer.headers.getlist("x-ratelimit-limit-requests") == ["5"]
    assert len(answer.headers.getlist("RateLimit")) == 1
    assert answer.headers["X-A"] == "1"


def test_two_limiters_tell_of_both() -> None:
    """Limiters around each other list all limits once, the outermost first."""
    app = stack(
        Inner(),
        partial(RateLimiter, limits="5/min", by="ip", name="outer"),
        partial(RateLimiter, limits="9/hour", by="ip", name="inner"),
    )
    answer = call(app, CHAT)
    assert answer.headers.getlist("RateLimit-Policy") == ['"outer";q=5;w=60, "inner";q=9;w=3600']


def test_the_limits_of_one_limiter_are_one_step() -> None:
    """LIM-2 for windows: what the second limit refuses is not spent in the first."""
    app, clock = limiter(["3/min", "1/s"], by="ip")
    assert [call(app).status for _ in range(3)] == [200, 429, 429]
    for _ in range(2):
        clock.advance(1.1)
        assert call(app).status == 200
    clock.advance(1.1)
    assert call(app).status == 429


BUCKETS = [
    pytest.param("ip", {"REMOTE_ADDR": "10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.2"}, False, id="ip"),
    pytest.param(
        "ip", {"REMOTE_ADDR": "::ffff:10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.1"}, True,
        id="IPv4 in IPv6 is the same address",
    ),
    pytest.param(
        "ip", {"REMOTE_ADDR": "2001:db8::1"}, {"REMOTE_ADDR": "2001:db8::ffff:2"}, True,
        id="IPv6 counts by /64",
    ),
    pytest.param(
        "ip", {"REMOTE_ADDR": "2001:db8::1"}, {"REMOTE_ADDR": "2001:db8:0:1::1"}, False,
        id="another /64",
    ),
    pytest.param(
        "ip", {"aigw.client_ip": "10.0.0.1"}, {"aigw.client_ip": "10.0.0.2"}, False,
        id="the address that a layer found",
    ),
    pytest.param(
        "key", {"aigw.key": ApiKey("a")}, {"aigw.key": ApiKey("b")}, False, id="key"
    ),
    pytest.param(
        "key", {"aigw.key": ApiKey("a"), "REMOTE_ADDR": "10.0.0.1"},
        {"aigw.key": ApiKey("a"), "REMOTE_ADDR": "10.0.0.2"}, True, id="one key from anywhere",
    ),
    pytest.param(
        "key", {"REMOTE_ADDR": "10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.2"}, False,
        id="without a key the address",
    ),
    pytest.param("global", {"REMOTE_ADDR": "10.0.0.1"}, {"REMOTE_ADDR": "10.0.0.2"}, True, id="all"),
    pytest.param("header:X-Team", {"HTTP_X_TEAM": "a"}, {"HTTP_X_TEAM": "b"}, False, id="header"),
    pytest.param("header:X-Team", {}, {"HTTP_X_TEAM": ""}, True, id="an absent header is shared"),
    pytest.param(
        "claim:sub", {"aigw.claims": {"sub": "a"}}, {"aigw.claims": {"sub": "b"}}, False, id="claim"
    ),
    pytest.param("claim:sub", {}, {"aigw.claims": {}}, True, id="an absent claim is shared"),
    pytest.param(
        lambda environ: environ["PATH_INFO"], {"path": "/a"}, {"path": "/b"}, False, id="callable"
    ),
    pytest.param(
        ["ip", "header:X-Team"], {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_TEAM": "a"},
        {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_TEAM": "b"}, False, id="a combination",
    ),
    pytest.param(
        ["header:A", "header:B"], {"HTTP_A": "x|", "HTTP_B": "y"}, {"HTTP_A": "x", "HTTP_B": "|y"},
        False, id="combinations are not confused",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("by", "first", "second", "shared"), BUCKETS)
def test_by_whom_is_counted(by: Any, first: Any, second: Any, shared: bool) -> None:
    """Two requests share a count just when `by` says so."""
    app, _ = limiter("1/min", by=by)
    assert call(app, **first).status == 200
    assert call(app, **first).status == 429
    assert call(app, **second).status == (429 if shared else 200)


def test_a_header_that_may_be_a_credential_is_not_kept_in_clear() -> None:
    """The engine holds a hash of a client's value, never the value."""
    counters = MemoryCounters()
    app = RateLimiter(Inner(), "5/min", by="header:Authorization", counters=counters)
    call(app, HTTP_AUTHORIZATION="Bearer s3cret-s3cret")
    assert "s3cret" not in repr(counters._table)


def test_limiters_share_by_name_and_not_by_amount() -> None:
    """On one engine the same name, unit and window count together; a changed amount goes on."""
    counters = MemoryCounters(clock=Clock())
    first = RateLimiter(Inner(), "5/min", by="ip", counters=counters)
    changed = RateLimiter(Inner(), "2/min", by="ip", counters=counters)
    named = RateLimiter(Inner(), "2/min", by="ip", counters=counters, name="mine")
    other = RateLimiter(Inner(), "2/hour", by="ip", counters=counters)
    assert [call(first).status for _ in range(2)] == [200, 200]
    assert [call(app).status for app in (changed, named, other)] == [429, 200, 200]


def test_an_engine_by_url_is_one_for_the_process_and_opened_a_new_one() -> None:
    """`counters="memory:"` is shared by who names it; `open_counters("memory:")` is new."""
    name = "only-in-this-test"
    first = RateLimiter(Inner(), "1/min", by="ip", counters="memory:", name=name)
    second = RateLimiter(Inner(), "1/min", by="ip", counters="memory:", name=name)
    own = RateLimiter(Inner(), "1/min", by="ip", name=name)
    opened = RateLimiter(Inner(), "1/min", by="ip", counters=open_counters("memory:"), name=name)
    assert [call(app).status for app in (first, second, own, opened)] == [200, 429, 200, 200]


def test_64_threads_at_a_limit_of_1000_admit_exactly_1000() -> None:
    """LIM-1: requests that come at once are counted one by one."""
    app = RateLimiter(Inner(), "1000/hour", by="global")
    start = threading.Barrier(64)
    admitted = []

    def work() -> None:
        start.wait()
        mine = sum(call(app).status == 200 for _ in range(25))
        admitted.append(mine)

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 1000


class Down:
    """An engine that gives no answer."""

    shared = True

    def reserve(self, demands: Any) -> Any:
        raise StoreUnavailable("down", engine="counters")

    test = reserve


def test_an_engine_that_is_down_refuses_and_says_which() -> None:
    """LIM-8: 503 that names the counters, never a pass and never a 429."""
    answer = call(RateLimiter(Inner(), "1/min", counters=Down()), CHAT)  # type: ignore[arg-type]
    assert (answer.status, answer.code) == (503, "store_unavailable")
    assert "counters" in answer.json["error"]["message"]
    assert answer.headers["Retry-After"] == "1"


def test_fail_open_lets_through_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """LIM-8: with `fail_open=True` the request passes and the log tells of it."""
    app = RateLimiter(Inner(), "1/min", counters=Down(), fail_open=True)  # type: ignore[arg-type]
    assert call(app).status == 200
    assert "uncounted" in caplog.text


def test_judging_spends_nothing() -> None:
    """`judge` tells what would happen and leaves the count as it is."""
    app, _ = limiter("1/min", by="ip")
    environ = {"REMOTE_ADDR": "192.0.2.7"}
    assert [app.judge(environ) for _ in range(3)] == [None] * 3
    assert call(app).status == 200
    denial = app.judge(environ)
    assert denial is not None
    assert denial.code == "rate_limit_exceeded"


def test_report_only_counts_and_refuses_nothing() -> None:
    """`enforce=False`: over the limit passes, and the decision tells."""
    app, _ = limiter("1/min", by="ip", enforce=False)
    decisions = [call(app).environ["aigw.decisions"][0] for _ in range(2)]
    assert [d.code for d in decisions] == [None, "rate_limit_exceeded"]


def test_several_processes_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Memory counts for one process; under several the log says so, once."""
    app, _ = limiter("9/min", by="ip")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            call(app, **{"wsgi.multiprocess": True})
    assert caplog.text.count("counts alone") == 1


def test_a_fork_leaves_no_lock_behind() -> None:
    """RUN-2: a child that was forked while another thread was counting can count."""
    counters = MemoryCounters()
    app = RateLimiter(Inner(), "9/min", by="ip", counters=counters)
    counters._lock.acquire()
    assert in_child(lambda: call(app).status == 200)
    counters._lock.release()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"limits": ()}, "limits"),
        ({"limits": "x"}, "limits"),
        ({"limits": ["10/min", "5/min"]}, "limits"),
        ({"by": "nobody"}, "by"),
        ({"by": "header:"}, "by"),
        ({"by": "header:a b"}, "by"),
        ({"by": []}, "by"),
        ({"by": None}, "by"),
        ({"name": 'a"b'}, "name"),
        ({"name": ""}, "name"),
        ({"counters": "x"}, "counters"),
        ({"counters": 3}, "counters"),
        ({"fail_open": "no"}, "fail_open"),
        ({"enforce": "no"}, "enforce"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    """A wrong option is a ValueError when the layer is built, and says which."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        RateLimiter(Inner(), **{"limits": "5/min", **options})


def test_a_providers_headers_of_other_names_stay() -> None:
    """Ours take the place of those of the same name, and tell nothing of tokens here."""
    theirs = [
        ("X-RateLimit-Remaining-Requests", "7"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("RateLimit", "theirs"),
    ]
    answer = call(RateLimiter(Inner(headers=theirs), "5/min"), CHAT)
    assert answer.headers.getlist("x-ratelimit-remaining-requests") == ["4"]
    assert answer.headers.getlist("x-ratelimit-remaining-tokens") == ["9"]
    assert len(answer.headers.getlist("RateLimit")) == 1


def test_an_engines_url_keeps_its_password() -> None:
    """What is no engine is refused by its scheme."""
    with pytest.raises(ValueError, match=r"^counters: 'nosuch'") as error:
        open_counters("nosuch://:s3cret@h/0")
    assert "s3cret" not in str(error.value)


def test_an_open_engine_will_do_for_its_url() -> None:
    """Where a URL is expected an opened engine will do."""
    engine = open_counters("memory:")
    assert open_counters(engine) is engine


def test_one_address_makes_a_bounded_number_of_buckets() -> None:
    """A header that changes with each request: after 1000 buckets one for all others."""
    engine = open_counters("memory:")
    app = RateLimiter(Inner(), "5/min", by="header:X-User", counters=engine)
    for number in range(1000):
        assert call(app, HTTP_X_USER=f"user{number}").status == 200
    further = [call(app, HTTP_X_USER=f"new{number}").status for number in range(8)]
    assert further == [200] * 5 + [429] * 3
    assert len(engine.counts()) == 1001
    # Its older buckets, other addresses and who shows a key are counted as ever.
    assert call(app, HTTP_X_USER="user7").status == 200
    assert call(app, HTTP_X_USER="new7", REMOTE_ADDR="192.0.2.8").status == 200
    assert call(app, HTTP_X_USER="newer", **{"aigw.claims": {"sub": "x"}}).status == 200


def test_a_judgement_makes_no_bucket() -> None:
    """What is only judged uses none of the buckets that an address may make."""
    app = RateLimiter(Inner(), "5/min", by="header:X-User")
    for number in range(1100):
        assert app.judge(make_environ(HTTP_X_USER=f"user{number}")) is None
    assert all(call(app, HTTP_X_USER=f"new{number}").status == 200 for number in range(8))


BY_TENANT = """
import sys
from aigw_middleware import RateLimiter
from tests.support import Inner, call

def header(key):
    return lambda environ: environ.get(key, "")

by = {"lambda": lambda environ: environ.get("HTTP_X_TENANT", ""), "closure": header("HTTP_X_TENANT")}
app = RateLimiter(Inner(), "2/min", by=by[sys.argv[1]], counters=sys.argv[2])
print(call(app, HTTP_X_TENANT="a").status)
"""


@pytest.mark.parametrize("kind", ["lambda", "closure"])
def test_what_counts_by_a_callable_is_one_count_in_all_processes(kind: str, tmp_path: Path) -> None:
    """LIM-1: three processes that were started by themselves, on one engine: two pass, not six."""
    seen = []
    for seed in ("1", "2", "3"):
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", BY_TENANT, kind, f"lmdb:///{tmp_path}/counts"]
        seen.append(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)
    assert seen == [b"200\n", b"200\n", b"429\n"]


def by_header(key: str) -> Any:
    return lambda environ: environ.get(key, "")


def value_of(key: str, environ: dict[str, Any]) -> str:
    return str(environ.get(key, ""))


@pytest.mark.parametrize("make", [by_header, lambda key: partial(value_of, key)])
def test_callables_that_were_made_with_other_things_count_apart(make: Any) -> None:
    """Two closures of one function, two partials: each limiter has a count of its own."""
    counters = open_counters("memory:")
    inner = RateLimiter(Inner(), "2/min", by=make("HTTP_X_USER"), counters=counters)
    app = RateLimiter(inner, "2/min", by=make("HTTP_X_TEAM"), counters=counters)
    assert [call(app).status for _ in range(3)] == [200, 200, 429]


class Reporting:
    """An app that asks a model by itself and tells what it used."""

    def __init__(self, **told: Any) -> None:
        self.told = {f"aigw.{name}": value for name, value in told.items()}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ.update(self.told)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]


def test_an_app_that_tells_its_model_is_counted_in_money() -> None:
    """The price is that of the model which the app tells with its tokens, once it has answered."""
    used = Usage(input_tokens=100_000, output_tokens=100_000)
    app = RateLimiter(
        Reporting(usage=used, provider="openai", model="gpt-x"),
        "1 usd/day",
        by="global",
        prices={"openai/gpt-x": (5, 5)},
    )
    assert [call(app, "/ask").status for _ in range(2)] == [200, 429]


def test_money_that_cannot_be_counted_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """An app that tells tokens and no model under a limit of money: the log says so."""
    app = RateLimiter(Reporting(usage=Usage(10, 10)), "1 usd/day", by="global")
    holding._said._last = float("-inf")
    assert call(app, "/ask").status == 200
    assert "limit of money cannot count" in caplog.text
