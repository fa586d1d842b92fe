"""The real SDKs of OpenAI, Anthropic and Google, unmodified, through a whole gateway."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors

from aigw_middleware import (
    HeaderRewriter,
    IPAllowlist,
    KeyAuth,
    ModelAccess,
    Provider,
    RateLimiter,
    StaticKeys,
    UpstreamForwarder,
    stack,
)
from aigw_middleware.denial import STATUSES, Denial, refuse
from aigw_middleware.testing import StandInProvider, serving

from .support import three_providers

GATEWAY_KEY = "gateway-key-0123456789"
PROVIDER_KEY = "sk-provider-9876543210"
QUESTION = "How do you do?"
ANSWER = f"You said: {QUESTION}"
EMBEDDING = [0.25, -0.5, 0.75]


class Gateway(NamedTuple):
    url: str
    provider: StandInProvider


@pytest.fixture
def provider() -> StandInProvider:
    return StandInProvider(api_keys=[PROVIDER_KEY])


@pytest.fixture
def gateway(provider: StandInProvider) -> Iterator[Gateway]:
    with serving(provider) as upstream:
        app = stack(
            UpstreamForwarder(upstream=three_providers(upstream, PROVIDER_KEY)),
            partial(IPAllowlist, allow=["127.0.0.0/8"]),
            partial(KeyAuth, keys=StaticKeys({"ci": GATEWAY_KEY})),
            partial(RateLimiter, limits="100/min"),
            partial(HeaderRewriter, request={"set": {"X-Team": "search"}}),
        )
        with serving(app) as url:
            yield Gateway(url, provider)


@pytest.fixture
def refusing() -> Iterator[Any]:
    """A gateway that answers with the refusal in `denial[0]`."""
    denial: list[Denial] = []

    def app(environ: Any, start_response: Any) -> Any:
        return refuse(environ, start_response, denial[0])

    with serving(app) as url:
        yield url, denial


def openai_client(url: str, key: str = GATEWAY_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def anthropic_client(url: str, key: str = GATEWAY_KEY) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)


def google_client(url: str, key: str = GATEWAY_KEY) -> genai.Client:
    return genai.Client(api_key=key, http_options={"base_url": url})


def checked(gateway: Gateway, header: str) -> None:
    """The provider saw its own key in its header, our header, and nothing of the gateway key."""
    seen = gateway.provider.requests[-1]
    assert PROVIDER_KEY in seen.headers[header]
    assert seen.headers["x-team"] == "search"
    assert all(GATEWAY_KEY not in repr(request) for request in gateway.provider.requests)


MESSAGES: Any = [{"role": "user", "content": QUESTION}]


def test_openai_chat(gateway: Gateway) -> None:
    """A chat completion comes back as the provider gave it."""
    with openai_client(gateway.url) as client:
        answer = client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage is not None
    checked(gateway, "authorization")


def test_openai_streamed_chat(gateway: Gateway) -> None:
    """A streamed chat has every piece, in order."""
    with openai_client(gateway.url) as client:
        stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 3
    assert "".join(pieces) == ANSWER


def test_openai_responses(gateway: Gateway) -> None:
    """The Responses API, whole and streamed."""
    with openai_client(gateway.url) as client:
        assert client.responses.create(model="gpt-4o", input=QUESTION).output_text == ANSWER
        events = client.responses.create(model="gpt-4o", input=QUESTION, stream=True)
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == ANSWER


def test_openai_embeddings_and_models(gateway: Gateway) -> None:
    """Embeddings, and the list of models: of all providers, by the names that lead to them."""
    with openai_client(gateway.url) as client:
        answer = client.embeddings.create(model="embed", input=["a", "b"])
        models = [model.id for model in client.models.list()]
    assert [item.embedding for item in answer.data] == [EMBEDDING] * 2
    sizes = ["stand-in-large", "stand-in-small"]
    others = [f"{provider}/{size}" for provider in ("anthropic", "google") for size in sizes]
    assert models == sizes + others


def test_anthropic_messages(gateway: Gateway) -> None:
    """A message comes back as the provider gave it."""
    with anthropic_client(gateway.url) as client:
        answer = client.messages.create(model="claude", max_tokens=99, messages=MESSAGES)
        count = client.messages.count_tokens(model="claude", messages=MESSAGES)
    assert answer.content[0].text == ANSWER
    assert count.input_tokens == 4
    checked(gateway, "x-api-key")


def test_anthropic_streamed_messages(gateway: Gateway) -> None:
    """A streamed message has every piece, in order."""
    with (
        anthropic_client(gateway.url) as client,
        client.messages.stream(model="claude", max_tokens=99, messages=MESSAGES) as stream,
    ):
        assert "".join(stream.text_stream) == ANSWER


def test_anthropic_models(gateway: Gateway) -> None:
    """The list of models, in Anthropic's form, from the path that OpenAI has too."""
    with anthropic_client(gateway.url) as client:
        assert [m.id for m in client.models.list()] == ["stand-in-large", "stand-in-small"]


def test_google_generate_content(gateway: Gateway) -> None:
    """Content comes back as the provider gave it."""
    with google_client(gateway.url) as client:
        assert client.models.generate_content(model="gemini", contents=QUESTION).text == ANSWER
    checked(gateway, "x-goog-api-key")


def test_google_streamed_content(gateway: Gateway) -> None:
    """Streamed content has every piece, in order."""
    with google_client(gateway.url) as client:
        stream = client.models.generate_content_stream(model="gemini", contents=QUESTION)
        assert "".join(chunk.text or "" for chunk in stream) == ANSWER


def test_google_embeddings_and_models(gateway: Gateway) -> None:
    """Embeddings, and the list of models: of all providers, by the names that lead to them."""
    with google_client(gateway.url) as client:
        answer = client.models.embed_content(model="embed", contents="a")
        models = [model.name for model in client.models.list()]
    assert answer.embeddings is not None
    assert answer.embeddings[0].values == EMBEDDING
    assert models == ["models/stand-in-large", "models/stand-in-small"]


def test_google_file_upload() -> None:
    """Begun with the provider's key; the address that comes back is good for that one file."""
    seen: list[tuple[str, str | None, bytes]] = []

    def provider(environ: Any, start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        seen.append((f"{path}?{query}", environ.get("HTTP_X_GOOG_API_KEY"), body))
        if query:
            state, answer = "final", b'{"file": {"name": "files/1", "mimeType": "text/plain"}}'
        else:
            state, answer = "active", b"{}"
        url = f"http://{environ['HTTP_HOST']}{path}?upload_id=1"
        headers = [
            ("Content-Type", "application/json"),
            ("X-Goog-Upload-Status", state),
            ("X-Goog-Upload-URL", url),
        ]
        start_response("200 OK", headers)
        return [answer]

    with serving(provider) as upstream:
        google = Provider("google", base_url=f"{upstream}/v1beta", api_keys=[PROVIDER_KEY])
        app = stack(
            UpstreamForwarder(upstream=google),
            partial(KeyAuth, keys=StaticKeys({"ci": GATEWAY_KEY})),
            partial(ModelAccess, allow=["gemini-*"], paths=["/upload/v1/files"]),
        )
        with serving(app) as url:
            client = google_client(url)
            file = client.files.upload(
                file=io.BytesIO(b"hello"), config={"mime_type": "text/plain"}
            )
            client.close()
    assert file.name == "files/1"
    begun, sent = seen
    assert begun[:2] == ("/upload/v1beta/files?", PROVIDER_KEY)
    assert sent == ("/upload/v1beta/files?upload_id=1", None, b"hello")


def test_the_results_of_claudes_batch() -> None:
    """The SDK asks where the batch says: at the gateway, not at the provider with our key."""
    batch = {
        "id": "msgbatch_1", "type": "message_batch", "processing_status": "ended",
        "created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-02T00:00:00Z",
        "request_counts": {"canceled": 0, "errored": 0, "expired": 0, "processing": 0, "succeeded": 1},
        "results_url": "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results",
    }  # fmt: skip
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": ANSWER}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }  # fmt: skip
    line = {"custom_id": "a", "result": {"type": "succeeded", "message": message}}
    told = {
        "/v1/messages/batches/msgbatch_1": batch,
        "/v1/messages/batches": {"data": [batch], "has_more": False},
        "/v1/messages/batches/msgbatch_1/results": line,
    }

    def provider(environ: Any, start_response: Any) -> list[bytes]:
        assert environ["HTTP_X_API_KEY"] == PROVIDER_KEY
        kind = "jsonl" if environ["PATH_INFO"].endswith("results") else "json"
        start_response("200 OK", [("Content-Type", f"application/{kind}")])
        return [json.dumps(told[environ["PATH_INFO"]]).encode()]

    with serving(provider) as upstream:
        app = stack(
            UpstreamForwarder(
                upstream=Provider("anthropic", base_url=f"{upstream}/v1", api_keys=[PROVIDER_KEY])
            ),
            partial(KeyAuth, keys=StaticKeys({"ci": GATEWAY_KEY})),
        )
        with serving(app) as url, anthropic_client(url) as client:
            (result,) = client.messages.batches.results("msgbatch_1")
            (listed,) = client.messages.batches.list()
    assert result.result.type == "succeeded"
    assert result.result.message.content[0].text == ANSWER  # type: ignore[union-attr]
    assert listed.results_url == "/v1/messages/batches/msgbatch_1/results"


def test_googles_paths_go_to_google_whatever_their_version() -> None:
    """The SDK asks below `/v1`, where others have paths of the same name."""
    seen: list[str] = []

    def provider(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b"{}"]

    with serving(provider) as upstream:
        everybody = [
            Provider("openai", base_url="http://127.0.0.1:9/v1", api_keys=[PROVIDER_KEY]),
            Provider("google", base_url=f"{upstream}/v1beta", api_keys=[PROVIDER_KEY]),
        ]
        app = stack(
            UpstreamForwarder(upstream=everybody),
            partial(KeyAuth, keys=StaticKeys({"ci": GATEWAY_KEY})),
        )
        with serving(app) as url:
            client = google_client(url)
            list(client.files.list())
            client.files.delete(name="abc")
            list(client.caches.list())
            list(client.batches.list())
            list(client.file_search_stores.list())
            client.close()
    assert seen == [
        "GET /v1beta/files",
        "DELETE /v1beta/files/abc",
        "GET /v1beta/cachedContents",
        "GET /v1beta/batches",
        "GET /v1beta/fileSearchStores",
    ]


def test_the_openai_forms_of_anthropic_and_google(provider: StandInProvider) -> None:
    """The openai SDK talks to Anthropic and Google where they alone are the providers."""
    with serving(provider) as upstream:
        for name, base in (("anthropic", "/v1"), ("google", "/v1beta")):
            served = Provider(name, base_url=upstream + base, api_keys=[PROVIDER_KEY])
            with serving(UpstreamForwarder(upstream=served)) as url, openai_client(url) as client:
                answer = client.chat.completions.create(model="m", messages=MESSAGES)
            assert answer.choices[0].message.content == ANSWER
    assert [request.path for request in provider.requests] == [
        "/v1/chat/completions",
        "/v1beta/openai/chat/completions",
    ]


OPENAI_ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}
ANTHROPIC_ERRORS = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    413: anthropic.RequestTooLargeError,
    429: anthropic.RateLimitError,
    503: anthropic.ServiceUnavailableError,
    504: anthropic.DeadlineExceededError,
}


@pytest.mark.parametrize("code", STATUSES)
def test_openai_raises_its_own_error(code: str, refusing: Any) -> None:
    """The openai SDK raises the class of the status, with our message and code in it."""
    url, denial = refusing
    denial.append(Denial(code, f"Refused: {code}."))
    with openai_client(url) as client, pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert isinstance(error.value, OPENAI_ERRORS.get(STATUSES[code], openai.APIStatusError))
    assert error.value.code == code
    assert f"Refused: {code}." in error.value.message
    assert error.value.request_id is not None


@pytest.mark.parametrize("code", STATUSES)
def test_anthropic_raises_its_own_error(code: str, refusing: Any) -> None:
    """The anthropic SDK raises the class of the status; the code is in `X-Aigw-Code`."""
    url, denial = refusing
    denial.append(Denial(code, f"Refused: {code}."))
    with anthropic_client(url) as client, pytest.raises(anthropic.APIStatusError) as error:
        client.messages.create(model="claude", max_tokens=9, messages=MESSAGES)
    assert isinstance(error.value, ANTHROPIC_ERRORS.get(STATUSES[code], anthropic.APIStatusError))
    assert error.value.response.headers["X-Aigw-Code"] == code
    assert error.value.body["error"]["message"] == f"Refused: {code}."
    assert error.value.body["request_id"] == error.value.response.headers["X-Request-Id"]


@pytest.mark.parametrize("code", STATUSES)
def test_google_raises_its_own_error(code: str, refusing: Any) -> None:
    """The google-genai SDK raises ClientError or ServerError with our message and code."""
    url, denial = refusing
    denial.append(Denial(code, f"Refused: {code}."))
    with google_client(url) as client, pytest.raises(genai_errors.APIError) as error:
        client.models.generate_content(model="gemini", contents=QUESTION)
    status = STATUSES[code]
    expected = genai_errors.ClientError if status < 500 else genai_errors.ServerError
    assert isinstance(error.value, expected)
    assert (error.value.code, error.value.message) == (status, f"Refused: {code}.")
    assert error.value.response.headers["X-Aigw-Code"] == code


def test_a_bad_key_is_each_sdks_authentication_error(gateway: Gateway) -> None:
    """Through the real gateway: a wrong key is the SDK's own error, and nobody else hears of it."""
    with openai_client(gateway.url, "wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with (
        anthropic_client(gateway.url, "wrong") as other,
        pytest.raises(anthropic.AuthenticationError),
    ):
        other.messages.create(model="claude", max_tokens=9, messages=MESSAGES)
    with google_client(gateway.url, "wrong") as third, pytest.raises(genai_errors.ClientError):
        third.models.generate_content(model="gemini", contents=QUESTION)
    assert not gateway.provider.requests


def test_a_limit_is_openais_rate_limit_error_with_its_headers(provider: StandInProvider) -> None:
    """A limit that is reached: RateLimitError, with Retry-After and what is left."""
    with serving(provider) as upstream:
        served = Provider("openai", base_url=f"{upstream}/v1", api_keys=[PROVIDER_KEY])
        app = RateLimiter(UpstreamForwarder(upstream=served), "1/min", by="ip")
        with serving(app) as url, openai_client(url) as client:
            client.models.list()
            with pytest.raises(openai.RateLimitError) as error:
                client.models.list()
    assert 1 <= int(error.value.response.headers["Retry-After"]) <= 61
    assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("sdk", ["openai", "responses", "anthropic", "google"])
def test_a_stream_that_breaks_off_is_an_error_in_each_sdk(gateway: Gateway, sdk: str) -> None:
    """A provider that breaks off in mid-stream: the SDK raises, and never ends as if whole."""
    gateway.provider.fail(after_events=3)
    if sdk == "openai":
        with (
            openai_client(gateway.url) as client,
            pytest.raises(openai.APIError, match="broke off"),
        ):
            list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    elif sdk == "responses":
        with (
            openai_client(gateway.url) as client,
            pytest.raises(openai.APIError, match="broke off"),
        ):
            list(client.responses.create(model="m", input=QUESTION, stream=True))
    elif sdk == "anthropic":
        with (
            anthropic_client(gateway.url) as other,
            pytest.raises(anthropic.APIStatusError, match="broke off"),
        ):
            list(other.messages.create(model="m", max_tokens=9, messages=MESSAGES, stream=True))
    else:
        with (
            google_client(gateway.url) as third,
            pytest.raises(genai_errors.ServerError, match="broke"),
        ):
            list(third.models.generate_content_stream(model="m", contents=QUESTION))
