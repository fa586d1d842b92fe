"""A provider that answers in the dialects of OpenAI, Anthropic and Gemini, and remembers.

It says back what it was told. It is no model of any provider's quirks; it has just what their
SDKs need for chats, streamed chats, embeddings and lists of models.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from werkzeug.wrappers import Request, Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Json = dict[str, Any]
MODELS = ("stand-in-large", "stand-in-small")
EMBEDDING = [0.25, -0.5, 0.75]


@dataclass(frozen=True)
class Received:
    """A request as the provider got it.

    Attributes:
        method: its method.
        path: its path, unquoted.
        target: path and query as they stood in the request line.
        headers: its headers, names in lower case.
        body: its body.
    """

    method: str
    path: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class _Failure(NamedTuple):
    status: int
    after_events: int | None
    headers: tuple[tuple[str, str], ...]


class StandInProvider:
    """A WSGI application that stands in for a provider.

    Args:
        api_keys: the keys that it takes; empty takes any, and none.
        between_events: called with the number of the event before each event of a stream but
            the first; by default it waits for `pace` seconds.
        pace: see `between_events`.

    Attributes:
        requests: what it received, the oldest first, the last thousand.
    """

    def __init__(
        self,
        *,
        api_keys: Iterable[str] = (),
        between_events: Callable[[int], None] | None = None,
        pace: float = 0.0,
    ) -> None:
        self.requests: deque[Received] = deque(maxlen=1000)
        self._keys = frozenset(api_keys)
        self._between = between_events or (lambda number: time.sleep(pace))
        self._failures: deque[_Failure] = deque()

    def fail(
        self,
        status: int = 500,
        *,
        times: int = 1,
        after_events: int | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Fail the next requests.

        Args:
            status: the status of the answer.
            times: how many requests fail.
            after_events: break off a stream after so many events instead, without an end.
            headers: further headers of the failing answer.
        """
        self._failures.extend([_Failure(status, after_events, tuple(headers))] * times)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        received = Received(
            request.method,
            request.path,
            environ.get("REQUEST_URI") or request.full_path,
            {name.lower(): value for name, value in request.headers.items()},
            request.get_data(),
        )
        self.requests.append(received)
        return self._answer(received)(environ, start_response)

    def _answer(self, received: Received) -> Response:
        failure = self._failures.popleft() if self._failures else None
        if failure is not None and failure.after_events is None:
            response = _error(received, failure.status, "The stand-in was told to fail.")
            response.headers.extend(list(failure.headers))
            return response
        if self._keys and not self._keys & _presented(received):
            return _error(received, 401, "The key is not known.")
        for pattern, answer in _ROUTES:
            match = pattern.fullmatch(received.path)
            if match:
                try:
                    found = answer(received, *match.groups())
                except (KeyError, ValueError, TypeError, AttributeError):
                    return _error(received, 400, "The body is not what this path takes.")
                return self._response(found, failure.after_events if failure else None)
        return _error(received, 404, "There is no such path.")

    def _response(self, found: Json | list[bytes], break_after: int | None) -> Response:
        if isinstance(found, dict):
            return _json(found, 200)
        return Response(self._events(found, break_after), mimetype="text/event-stream")

    def _events(self, events: list[bytes], break_after: int | None) -> Iterator[bytes]:
        for number, event in enumerate(events):
            if number == break_after:
                raise ConnectionAbortedError("the stand-in was told to break off")
            if number:
                self._between(number)
            yield event


def _json(document: Json, status: int) -> Response:
    return Response(json.dumps(document), status, mimetype="application/json")


def _presented(received: Received) -> set[str]:
    headers = received.headers
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    return {bearer, headers.get("x-api-key", ""), headers.get("x-goog-api-key", "")}


def _error(received: Received, status: int, message: str) -> Response:
    if "/v1beta/" in received.path and "/openai/" not in received.path:
        error: Json = {"error": {"code": status, "message": message, "status": "UNKNOWN"}}
    elif "anthropic-version" in received.headers:
        error = {"type": "error", "error": {"type": "api_error", "message": message}}
    else:
        error = {"error": {"message": message, "type": "stand_in", "param": None, "code": None}}
    return _json(error, status)


def _event(document: Json | str, name: str | None = None) -> bytes:
    data = document if isinstance(document, str) else json.dumps(document)
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


def _words(text: str) -> int:
    return len(text.split())


def _text(content: Any) -> str:
    """Return the text of a message's content, plain or in parts."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


def _pieces(text: str) -> list[str]:
    """Cut a text into words, as a stream would carry it."""
    return re.findall(r"\S+\s*", text)


def _reply(text: str) -> str:
    return f"You said: {text}"


def _openai_chat(received: Received) -> Json | list[bytes]:
    body = received.json
    asked = _text(body["messages"][-1]["content"])
    said = _reply(asked)
    base: Json = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": body["model"]}
    usage = _openai_usage("prompt", "completion", asked, said)
    if not body.get("stream"):
        message = {"role": "assistant", "content": said, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(delta: Json, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _event({**base, "object": "chat.completion.chunk", "choices": [choice]})

    events = [chunk({"role": "assistant", "content": ""})]
    events += [chunk({"content": piece}) for piece in _pieces(said)]
    events.append(chunk({}, "stop"))
    if (body.get("stream_options") or {}).get("include_usage"):
        last = {**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        events.append(_event(last))
    return [*events, _event("[DONE]")]


def _openai_usage(first: str, second: str, asked: str, said: str) -> Json:
    return {
        f"{first}_tokens": _words(asked),
        f"{second}_tokens": _words(said),
        "total_tokens": _words(asked) + _words(said),
    }


def _openai_responses(received: Received) -> Json | list[bytes]:
    body = received.json
    asked = body["input"] if isinstance(body["input"], str) else _text(body["input"][-1]["content"])
    said = _reply(asked)
    part = {"type": "output_text", "text": said, "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    response: Json = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "model": body["model"],
        "status": "completed",
        "output": [{**item, "content": [part]}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            **_openai_usage("input", "output", asked, said),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }
    if not body.get("stream"):
        return response
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
    events: list[Json] = [{"type": "response.created", "response": begun}]
    events += [
        {"type": "response.output_text.delta", **place, "delta": piece} for piece in _pieces(said)
    ]
    events.append({"type": "response.output_text.done", **place, "text": said})
    events.append({"type": "response.completed", "response": response})
    return [
        _event({**event, "sequence_number": number}, event["type"])
        for number, event in enumerate(events)
    ]


def _openai_embeddings(received: Received) -> Json:
    body = received.json
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [
        {"object": "embedding", "index": index, "embedding": _embedding(body)}
        for index, _ in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _embedding(body: Json) -> Any:
    if body.get("encoding_format") != "base64":
        return EMBEDDING
    import base64
    import struct

    return base64.b64encode(struct.pack(f"<{len(EMBEDDING)}f", *EMBEDDING)).decode()


def _models(received: Received) -> Json:
    if "anthropic-version" in received.headers:
        data = [
            {
                "type": "model",
                "id": name,
                "display_name": name.title(),
                "created_at": "2026-01-01T00:00:00Z",
            }
            for name in MODELS
        ]
        return {"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}
    listed = [
        {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "stand-in"}
        for name in MODELS
    ]
    return {"object": "list", "data": listed}


def _anthropic_messages(received: Received) -> Json | list[bytes]:
    body = received.json
    asked = _text(body["messages"][-1]["content"])
    said = _reply(asked)
    message: Json = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": said}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": _words(asked), "output_tokens": _words(said)},
    }
    if not body.get("stream"):
        return message
    usage = {"input_tokens": _words(asked), "output_tokens": 1}
    begun = {**message, "content": [], "stop_reason": None, "usage": usage}
    events: list[Json] = [
        {"type": "message_start", "message": begun},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
    ]
    events += [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": piece},
        }
        for piece in _pieces(said)
    ]
    events += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": _words(said)},
        },
        {"type": "message_stop"},
    ]
    return [_event(event, event["type"]) for event in events]


def _anthropic_count(received: Received) -> Json:
    return {"input_tokens": _words(_text(received.json["messages"][-1]["content"]))}


def _gemini_models(received: Received) -> Json:
    return {
        "models": [
            {
                "name": f"models/{name}",
                "displayName": name.title(),
                "supportedGenerationMethods": ["generateContent", "embedContent"],
            }
            for name in MODELS
        ]
    }


def _gemini(received: Received, model: str, verb: str) -> Json | list[bytes]:
    body = received.json
    if verb == "embedContent":
        return {"embedding": {"values": EMBEDDING}}
    if verb == "batchEmbedContents":
        return {"embeddings": [{"values": EMBEDDING} for _ in body["requests"]]}
    asked = _text(body["contents"][-1]["parts"])
    if verb == "countTokens":
        return {"totalTokens": _words(asked)}
    said = _reply(asked)
    if verb == "generateContent":
        return _gemini_answer(model, said, asked, said, "STOP")
    if verb != "streamGenerateContent":
        raise ValueError(verb)
    pieces = _pieces(said)
    return [
        _event(
            _gemini_answer(
                model,
                piece,
                asked,
                "".join(pieces[: number + 1]),
                "STOP" if number == len(pieces) - 1 else None,
            )
        )
        for number, piece in enumerate(pieces)
    ]


def _gemini_answer(model: str, text: str, asked: str, so_far: str, reason: str | None) -> Json:
    candidate: Json = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if reason:
        candidate["finishReason"] = reason
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": _words(asked),
            "candidatesTokenCount": _words(so_far),
            "totalTokenCount": _words(asked) + _words(so_far),
        },
        "modelVersion": model,
        "responseId": "resp_1",
    }


_Answer = Callable[..., "Json | list[bytes]"]
_ROUTES: tuple[tuple[re.Pattern[str], _Answer], ...] = (
    (re.compile(r"/v1(?:beta/openai)?/chat/completions"), _openai_chat),
    (re.compile(r"/v1/responses"), _openai_responses),
    (re.compile(r"/v1(?:beta/openai)?/embeddings"), _openai_embeddings),
    (re.compile(r"/v1(?:beta/openai)?/models"), _models),
    (re.compile(r"/v1/messages"), _anthropic_messages),
    (re.compile(r"/v1/messages/count_tokens"), _anthropic_count),
    (re.compile(r"/v1beta/models"), _gemini_models),
    (re.compile(r"/v1beta/models/([^/:]+):([A-Za-z]+)"), _gemini),
)
