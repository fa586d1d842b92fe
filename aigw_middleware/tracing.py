"""Tell OpenTelemetry of requests, by its GenAI conventions.

Spans and metrics go where the process's OpenTelemetry SDK sends them; without an SDK nothing
happens. The trace that a client began (`traceparent`) goes on at the provider.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (1.37 and up). Prompts and answers are
never told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

from ._observing import Fields, Observer
from .dialects import PLAIN, spoken
from .environ import USAGE, full_path
from .usage.figures import figures_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

_SCOPE = "aigw_middleware"
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/#gen-ai-provider-name
_PROVIDERS = {
    "google": "gcp.gemini", "azure": "azure.ai.openai", "mistral": "mistral_ai", "xai": "x_ai",
}  # fmt: skip
_OPERATIONS = (
    ("/chat/completions", "chat"),
    ("/responses", "chat"),
    ("/messages", "chat"),
    (":generateContent", "generate_content"),
    (":streamGenerateContent", "generate_content"),
    ("/embeddings", "embeddings"),
    ("/completions", "text_completion"),
)


class Tracing(Observer):
    """Trace every request.

    ::

        app = Tracing(app)

    A span a request (`chat gpt-4o`, or its method where it is no such call), of kind SERVER, child
    of the client's, with `gen_ai.operation.name`, `gen_ai.provider.name`, `gen_ai.request.model`,
    `gen_ai.usage.input_tokens`, `gen_ai.usage.output_tokens`, `http.response.status_code` and, of
    a refusal, `error.type`; our own are `aigw.request_id`, `aigw.key_id`, `aigw.attempts` and
    `aigw.end`. The metrics are `gen_ai.client.operation.duration`, `gen_ai.client.token.usage` and
    `gen_ai.server.time_to_first_token`.

    Args:
        app: the wrapped WSGI application.
        tracer_provider: what makes spans; None for the process's.
        meter_provider: what makes metrics; None for the process's.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        super().__init__(app)
        self._span = f"aigw.span.{id(self):x}"  # layers of this kind may stand in each other
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._first = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="Time to generate first token",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    def begin(self, environ: WSGIEnvironment) -> None:
        """Begin a request's span, and have the provider go on with its trace."""
        parent = propagate.extract(environ, context.get_current(), _ENVIRON)
        name = _operation(environ) or environ.get("REQUEST_METHOD", "HTTP")
        span = self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER)
        environ[self._span] = span
        propagate.inject(environ, trace.set_span_in_context(span, parent), _ENVIRON)

    def observe(self, fields: Fields, environ: WSGIEnvironment) -> None:
        """End it."""
        span = environ.pop(self._span)
        operation = _operation(environ)
        provider, model = fields["provider"], fields["model"]
        named = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
            "gen_ai.request.model": model,
        }
        status, failed = fields["status"] or 0, fields["end"] != "done"
        error = fields["code"] or (str(status) if status >= 400 else None)
        error = error or (fields["end"] if failed else None)
        if operation is not None and model:
            span.update_name(f"{operation} {model}")
        span.set_attributes(
            _known(
                {
                    **named,
                    "http.request.method": fields["method"],
                    "url.path": fields["path"],
                    "http.response.status_code": status,
                    "client.address": fields["client_ip"],
                    "error.type": error,
                    "gen_ai.usage.input_tokens": fields["input_tokens"],
                    "gen_ai.usage.output_tokens": fields["output_tokens"],
                    "aigw.request_id": fields["request_id"],
                    "aigw.key_id": fields["key_id"],
                    "aigw.attempts": fields["attempts"],
                    "aigw.end": fields["end"],
                }
            )
        )
        if status >= 500 or failed:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end()
        if provider is not None and operation is not None:
            self._measure(fields, environ, _known({**named, "error.type": error}))

    def _measure(
        self, fields: Fields, environ: WSGIEnvironment, attributes: dict[str, Any]
    ) -> None:
        if "error.type" in attributes:
            # What a client names is no label where nobody has served it.
            attributes.pop("gen_ai.request.model", None)
        self._duration.record(fields["duration"], attributes)
        if fields["first_byte"] is not None and "error.type" not in attributes:
            self._first.record(fields["first_byte"], attributes)
        if environ.get(USAGE) is not None:
            figures = figures_of(environ[USAGE])
            for kind, tokens in (
                ("input", figures.input_tokens), ("output", figures.output_tokens),
            ):  # fmt: skip
                self._tokens.record(tokens, {**attributes, "gen_ai.token.type": kind})


class _Environ(Getter["WSGIEnvironment"], Setter["WSGIEnvironment"]):
    """Reads and writes the headers of a trace in the environ."""

    def get(self, carrier: WSGIEnvironment, key: str) -> list[str] | None:
        value = carrier.get(_key(key))
        return None if value is None else [value]

    def keys(self, carrier: WSGIEnvironment) -> list[str]:
        return [key[5:].replace("_", "-").lower() for key in carrier if key.startswith("HTTP_")]

    def set(self, carrier: WSGIEnvironment, key: str, value: str) -> None:
        carrier[_key(key)] = value


_ENVIRON = _Environ()


def _key(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")


def _operation(environ: WSGIEnvironment) -> str | None:
    """Return the operation of the conventions that a request asks for; None for no such one."""
    if spoken(environ)[0] is PLAIN:
        return None
    path = full_path(environ).rstrip("/")
    return next((name for end, name in _OPERATIONS if path.endswith(end)), None)


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
