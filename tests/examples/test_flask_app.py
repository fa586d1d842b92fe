"""examples/flask_app under gunicorn, run as its README says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import openai
import pytest
import requests

from aigw_middleware.testing import StandInProvider, serving

from ..support import CHAT
from .support import EXAMPLES, PROVIDER_KEY, Example

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}


class Running(NamedTuple):
    url: str
    example: Example
    provider: StandInProvider

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def signed_in(self) -> requests.Session:
        visitor = requests.Session()
        visitor.post(f"{self.url}/login", data={"name": "Ada"}, timeout=30)
        return visitor


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Run the app in a copy of its folder, with a stand-in for the provider."""
    folder = shutil.copytree(
        EXAMPLES / "flask_app", tmp_path / "app", ignore=shutil.ignore_patterns("*.db*", ".venv")
    )
    provider = StandInProvider(api_keys=[PROVIDER_KEY])
    with serving(provider) as upstream:
        example = Example(
            folder / "README.md",
            folder,
            OPENAI_API_KEY=PROVIDER_KEY,
            OPENAI_BASE_URL=f"{upstream}/v1",
            SECRET_KEY="a secret of the tests",
        )
        with example.running() as url:
            yield Running(url, example, provider)


def test_the_own_pages_need_no_key(running: Running) -> None:
    """The home page, the sign-in and its cookie, and the 404 are the app's own, without limits."""
    with requests.Session() as visitor:
        home = visitor.get(running.url, timeout=30)
        assert (home.status_code, "Sign in" in home.text) == (200, True)
        assert visitor.post(f"{running.url}/login", data={"name": "Ada"}, timeout=30).ok
        assert "Hello, Ada!" in visitor.get(running.url, timeout=30).text
        missing = visitor.get(f"{running.url}/missing", timeout=30)
    assert missing.status_code == 404
    assert not {"RateLimit", "X-Aigw-Code"} & {*home.headers, *missing.headers}


def test_the_own_route_asks_the_provider(running: Running) -> None:
    """POST /summary is answered from the provider, with its key, for who has signed in."""
    text = {"text": "A long text."}
    assert requests.post(f"{running.url}/summary", data=text, timeout=30).status_code == 401
    assert not running.provider.requests
    with running.signed_in() as visitor:
        answer = visitor.post(f"{running.url}/summary", data=text, timeout=30)
        assert answer.json() == {"summary": "You said: A long text."}
        running.provider.fail(500)
        assert visitor.post(f"{running.url}/summary", data=text, timeout=30).status_code == 502
    asked = running.provider.requests[0]
    assert (asked.path, asked.json["model"]) == (CHAT, "gpt-4o-mini")
    assert asked.headers["authorization"] == f"Bearer {PROVIDER_KEY}"


def test_the_sdk_chats_through_the_gateway(running: Running) -> None:
    """With a key of `aigw keys create` the SDK chats; the provider sees its own key alone."""
    token = running.example.create_key()
    with running.client(token) as client:
        answer = client.chat.completions.create(**BODY)
    assert answer.choices[0].message.content == "You said: Hello!"
    (received,) = running.provider.requests
    assert received.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert token not in repr(received)


def test_the_sdk_streams_through_the_gateway(running: Running) -> None:
    """A streamed chat arrives in the pieces that the provider sent."""
    with (
        running.client(running.example.create_key()) as client,
        client.chat.completions.create(**BODY, stream=True) as stream,
    ):
        pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
    assert [piece for piece in pieces if piece] == ["You ", "said: ", "Hello!"]


def test_a_bad_key_is_refused(running: Running) -> None:
    """A made-up key, the provider's and a deleted one are refused before the provider hears."""
    token = running.example.create_key()
    (key,) = json.loads(running.example.aigw("keys", "list", "--json"))
    running.example.aigw("keys", "delete", key["id"])
    for bad in ("aigw-made-up", PROVIDER_KEY, token):
        with running.client(bad) as client, pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(**BODY)
        assert refused.value.code == "invalid_api_key"
    assert not running.provider.requests


def test_the_limit_of_the_readmes_key(running: Running) -> None:
    """The key that the README creates is good for ten requests a minute, not for an eleventh."""
    with running.client(running.example.create_key()) as client:
        for _ in range(10):
            client.models.list()
        with pytest.raises(openai.RateLimitError) as refused:
            client.models.list()
    assert int(refused.value.response.headers["Retry-After"]) > 0
    assert len(running.provider.requests) == 10


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        pytest.param("/V1/chat/completions", {}, id="other case"),
        pytest.param("//v1/chat/completions", {}, id="empty segment"),
        pytest.param("/v1beta/models/g:generateContent", {}, id="Gemini's path"),
        pytest.param("/x/v1/chat/completions", {"SCRIPT_NAME": "/x"}, id="a prefix"),
    ],
)
def test_no_path_leads_past_the_key(running: Running, path: str, headers: dict[str, str]) -> None:
    """However the path is spelled, without a key the provider hears nothing."""
    answer = requests.post(running.url + path, json=BODY, headers=headers, timeout=30)
    assert answer.status_code in (401, 404)
    assert not running.provider.requests
