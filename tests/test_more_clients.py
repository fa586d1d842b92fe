"""Further real clients through the gateway: LangChain's ChatOpenAI and litellm's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from aigw_middleware import KeyAuth, StaticKeys, UpstreamForwarder, stack
from aigw_middleware.testing import StandInProvider, serving

from .support import three_providers
from .test_cli import clean_environment
from .test_sdks import GATEWAY_KEY, PROVIDER_KEY, QUESTION


class Way(NamedTuple):
    """A way to the provider: a base URL, and the key that it takes."""

    url: str
    key: str


@pytest.fixture
def ways() -> Iterator[dict[str, Way]]:
    """Through the gateway, and straight to the provider."""
    with serving(StandInProvider(api_keys=[PROVIDER_KEY])) as upstream:
        app = stack(
            UpstreamForwarder(upstream=three_providers(upstream, PROVIDER_KEY)),
            partial(KeyAuth, keys=StaticKeys({"ci": GATEWAY_KEY})),
        )
        with serving(app) as url:
            yield {
                "gateway": Way(f"{url}/v1", GATEWAY_KEY),
                "provider": Way(f"{upstream}/v1", PROVIDER_KEY),
            }


def langchain(way: Way) -> list[Any]:
    chat = ChatOpenAI(model="gpt-4o", base_url=way.url, api_key=way.key, max_retries=0)  # type: ignore[arg-type]
    embeddings = OpenAIEmbeddings(
        model="embed", base_url=way.url, api_key=way.key, check_embedding_ctx_length=False,  # type: ignore[arg-type]
    )  # fmt: skip
    answer = chat.invoke(QUESTION)
    streamed = [chunk.content for chunk in chat.stream(QUESTION)]
    return [answer.content, answer.usage_metadata, streamed, embeddings.embed_documents(["a", "b"])]


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # LangChain leaves its clients to the collector
def test_langchain_sees_no_difference(ways: dict[str, Way]) -> None:
    """Chat, whole and streamed, and embeddings: equal with and without the gateway in between."""
    assert langchain(ways["gateway"]) == langchain(ways["provider"])
    with pytest.raises(openai.AuthenticationError):
        langchain(Way(ways["gateway"].url, "wrong"))


LITELLM = """
import json, sys, litellm
url, key = sys.argv[1:]
common = {"api_base": url, "api_key": key, "num_retries": 0, "max_retries": 0}
ask = [{"role": "user", "content": "How do you do?"}]
told = []
for model in ("openai/gpt-4o", "anthropic/claude-sonnet-4-0"):
    base = dict(common)
    if model.startswith("anthropic"):
        base["api_base"] = url.removesuffix("/v1")
    answer = litellm.completion(model=model, messages=ask, max_tokens=20, **base)
    told.append(answer.choices[0].message.content)
    told.append([answer.usage.prompt_tokens, answer.usage.completion_tokens])
    chunks = litellm.completion(model=model, messages=ask, max_tokens=20, stream=True, **base)
    told.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
try:
    litellm.completion(model="openai/gpt-4o", messages=ask, **{**common, "api_key": "wrong"})
except litellm.AuthenticationError as error:
    told.append(error.status_code)
print(json.dumps(told))
"""


def test_litellms_client_sees_no_difference(ways: dict[str, Way]) -> None:
    """In OpenAI's and in Anthropic's dialect, whole and streamed; a bad key is its own error."""
    told = {}
    for name, way in ways.items():
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", LITELLM, *way],
            env=clean_environment(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="CRITICAL"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        told[name] = json.loads(done.stdout.splitlines()[-1])
    assert told["gateway"] == told["provider"]
    assert told["gateway"][-1] == 401
    assert told["gateway"][0] == f"You said: {QUESTION}"
