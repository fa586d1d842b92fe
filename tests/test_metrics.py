"""`Metrics` and `Tracing`: what is told of requests, and what never is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from aigw_middleware import (
    KeyAuth,
    ManagementAPI,
    Provider,
    StaticKeys,
    UpstreamForwarder,
    open_store,
    stack,
)
from aigw_middleware.metrics import MOST_MODELS, Metrics, exposition
from aigw_middleware.tracing import Tracing

from .support import CHAT, Inner, answering, call, raw_provider, run_python

TRACE = "0af7651916cd43dd8448eb211c80319c"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}
ANSWER = json.dumps({"usage": USAGE}).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER), ANSWER,
)  # fmt: skip
BODY = b'{"model": "m"}'
TOKEN = "gateway-key-0123456789"


@contextmanager
def gateway(layer: Any) -> Iterator[Any]:
    """A gateway in front of a provider that tells its usage, and the provider."""
    with raw_provider(answering(OK, keep=True)) as provider:
        upstream = Provider("mine", base_url=provider.url, api_keys=["sk-provider-secret"])
        app = stack(
            UpstreamForwarder(upstream=upstream, prices={"mine/m": (10, 20)}),
            layer,
            partial(KeyAuth, keys=StaticKeys({"ci": TOKEN})),
        )
        yield app, provider


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Return what is exposed, by name and labels, without buckets and times."""
    _, text = exposition(registry)
    return {
        f"{sample.name}{sorted(label for label in sample.labels.values() if label)}": sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created", "_sum"))
    }


def test_requests_tokens_and_money_are_counted() -> None:
    """One request that was answered and one that was refused."""
    registry = CollectorRegistry()
    with gateway(partial(Metrics, registry=registry)) as (app, _):
        assert call(app, CHAT, body=BODY, HTTP_X_API_KEY=TOKEN).status == 200
        assert call(app, CHAT, body=BODY, HTTP_X_API_KEY="wrong").status == 401
    assert samples(registry) == {
        "aigw_requests_total['200', 'done', 'm', 'mine']": 1,
        "aigw_requests_total['401', 'done', 'invalid_api_key']": 1,
        "aigw_requests_in_progress[]": 0,
        "aigw_attempts_total['200', 'mine']": 1,
        "aigw_tokens_total['input', 'm', 'mine']": 7,
        "aigw_tokens_total['m', 'mine', 'output']": 5,
        "aigw_tokens_total['cached', 'm', 'mine']": 2,
        "aigw_cost_usd_total['m', 'mine']": pytest.approx(0.00017),
        "aigw_request_duration_seconds_count['mine']": 1,
        "aigw_request_duration_seconds_count[]": 1,
        "aigw_first_byte_seconds_count['mine']": 1,
        "aigw_first_byte_seconds_count[]": 1,
        "aigw_overhead_seconds_count[]": 2,
    }


def test_labels_are_bounded() -> None:
    """However many models are served, so many are told apart; secrets are in no label."""
    registry = CollectorRegistry()
    app = Metrics(Inner(), registry=registry)
    for number in range(MOST_MODELS + 5):
        call(app, "/x", body=b"{}", **{"aigw.model": f"m{number}", "aigw.provider": "p"})
    names = [name for name in samples(registry) if name.startswith("aigw_requests_total")]
    assert len(names) == MOST_MODELS + 1
    assert samples(registry)["aigw_requests_total['200', 'done', 'other', 'p']"] == 5


def test_two_layers_share_a_registry() -> None:
    """A registry has each name once: a second layer counts in the same metrics."""
    registry = CollectorRegistry()
    call(Metrics(Inner(), registry=registry), "/x")
    call(Metrics(Inner(), registry=registry), "/x")
    assert samples(registry)["aigw_requests_total['200', 'done']"] == 2


def test_processes_are_summed_up(tmp_path: Path, sqlite_url: str) -> None:
    """`GET /metrics` tells of all processes that share a directory, and asks for the token."""
    code = (
        "import os, sys\n"
        "from aigw_middleware import ManagementAPI\n"
        "from aigw_middleware.metrics import Metrics, exposition, worker_ended\n"
        "from tests.support import Inner, call\n"
        "app = Metrics(Inner())\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        call(app, '/x')\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    worker_ended(pid)\n"
        "api = ManagementAPI(sys.argv[1], 'admin-0123456789', metrics=exposition)\n"
        "print(call(api, '/metrics').status)\n"
        "answer = call(api, '/metrics', HTTP_AUTHORIZATION='Bearer admin-0123456789')\n"
        "print(answer.headers['Content-Type'])\n"
        "print(answer.body.decode())\n"
    )
    directory = tmp_path / "metrics"
    directory.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    try:
        told = run_python(code, sqlite_url).splitlines()
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
    assert told[0] == "401"
    assert told[1].startswith("text/plain")
    (line,) = (line for line in told if line.startswith("aigw_requests_total{"))
    assert line.endswith(" 3.0")


def test_an_api_without_metrics_has_none(sqlite_url: str) -> None:
    """404 where nothing was given."""
    api = ManagementAPI(open_store(sqlite_url), "admin-0123456789")
    assert call(api, "/metrics", HTTP_AUTHORIZATION="Bearer admin-0123456789").status == 404


# --- OpenTelemetry


class Telemetry:
    """An SDK that keeps what it is told."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    @property
    def layer(self) -> Any:
        return partial(Tracing, tracer_provider=self.tracers, meter_provider=self.meters)

    def points(self) -> dict[str, list[Any]]:
        data: Any = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def test_a_span_a_request_by_the_genai_conventions() -> None:
    """Child of the client's, parent of the provider's; model, provider and tokens, no secret."""
    telemetry = Telemetry()
    with gateway(telemetry.layer) as (app, provider):
        parent = f"00-{TRACE}-b7ad6b7169203331-01"
        call(app, CHAT, body=BODY, HTTP_X_API_KEY=TOKEN, HTTP_TRACEPARENT=parent)
    (span,) = telemetry.exporter.get_finished_spans()
    assert (span.name, span.kind) == ("chat m", SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert provider.requests[0].headers["traceparent"] == (
        f"00-{TRACE}-{span.context.span_id:016x}-01"
    )
    told = dict(span.attributes or {})
    assert told.pop("aigw.request_id")
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mine",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": CHAT,
        "client.address": "192.0.2.7",
        "aigw.key_id": "ci",
        "aigw.attempts": 1,
        "aigw.end": "done",
    }
    points = telemetry.points()
    assert [point.sum for point in points["gen_ai.client.token.usage"]] == [7, 5]
    assert points["gen_ai.client.operation.duration"][0].count == 1
    assert points["gen_ai.server.time_to_first_token"][0].count == 1


def test_what_is_no_call_of_a_model_is_no_operation() -> None:
    """The conventions have no name for it: a span by its method, and none of their metrics."""
    telemetry = Telemetry()
    call(telemetry.layer(Inner()), "/x")
    (span,) = telemetry.exporter.get_finished_spans()
    assert span.name == "GET"
    assert not [name for name in span.attributes or {} if name.startswith("gen_ai.")]


def test_a_refusal_has_its_code_for_a_type() -> None:
    """`error.type` is the code; a client's mistake is no error of the span's."""
    telemetry = Telemetry()
    with gateway(telemetry.layer) as (app, _):
        call(app, CHAT, body=BODY, HTTP_X_API_KEY="wrong")
    (span,) = telemetry.exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "invalid_api_key"
    assert span.status.status_code is StatusCode.UNSET
    assert "wrong" not in span.to_json()


def test_a_provider_that_is_down_is_an_error() -> None:
    """502: the span says so, and the duration has its error type."""
    telemetry = Telemetry()
    upstream = Provider("mine", base_url="http://127.0.0.1:1")
    call(telemetry.layer(UpstreamForwarder(upstream=upstream)), CHAT, body=BODY)
    (span,) = telemetry.exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    (point,) = telemetry.points()["gen_ai.client.operation.duration"]
    assert point.attributes["error.type"] == "upstream_unreachable"


def test_without_an_sdk_nothing_happens() -> None:
    """The API alone makes no spans, and requests pass."""
    assert call(Tracing(Inner()), CHAT, body=BODY).status == 200
