"""The examples of one file, run as their docstrings say."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from aigw_middleware.testing import StandInProvider, serving

from ..support import call
from .support import EXAMPLES, PROVIDER_KEY, Example

SECRET = "reports-key-0123456789"


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., Example]:
    """Return a function that prepares an example, beside which its processes run."""
    (tmp_path / "examples").symlink_to(EXAMPLES)

    def prepare(name: str, **variables: str) -> Example:
        return Example(EXAMPLES / f"{name}.py", tmp_path, **variables)

    return prepare


@pytest.fixture
def provider() -> StandInProvider:
    return StandInProvider(api_keys=[PROVIDER_KEY])


@pytest.fixture
def variables(provider: StandInProvider) -> Iterator[dict[str, str]]:
    """Return the variables that lead an example to the stand-in provider."""
    with serving(provider) as url:
        yield {"OPENAI_API_KEY": PROVIDER_KEY, "OPENAI_BASE_URL": f"{url}/v1"}


def get(url: str, key: str | None = None) -> requests.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return requests.get(url, headers=headers, timeout=30)


def test_whole_gateway(
    example: Callable[..., Example], provider: StandInProvider, variables: dict[str, str]
) -> None:
    """A key of the command opens it; headers are rewritten both ways; nothing else is served."""
    gateway = example("whole_gateway", **variables)
    with gateway.running() as url:
        assert get(f"{url}/v1/models").status_code == 401
        token = gateway.create_key()
        with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as client:
            answer = client.models.with_raw_response.list()
        assert get(f"{url}/own/page", token).status_code == 404
    assert answer.parse().data[0].id == "stand-in-large"
    assert answer.headers["X-Served-By"] == "ai-gateway"
    (received,) = provider.requests
    assert received.headers["x-team"] == "search"
    assert "user-agent" not in received.headers
    assert received.headers["authorization"] == f"Bearer {PROVIDER_KEY}"


def test_whole_gateway_refuses_an_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str]
) -> None:
    """An address outside its networks is refused before the key is looked at."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIGW_STORE", f"sqlite:///{tmp_path}/aigw.db")
    application: Any = runpy.run_path(str(EXAMPLES / "whole_gateway.py"))["application"]
    assert call(application, "/v1/models", REMOTE_ADDR="203.0.113.9").code == "ip_not_allowed"
    assert call(application, "/v1/models", REMOTE_ADDR="10.1.2.3").code == "invalid_api_key"


def test_one_class(example: Callable[..., Example]) -> None:
    """Five requests a minute are answered as ever, the sixth is told when to come back."""
    with example("one_class").running() as url:  # the first request asks whether it is ready
        answers = [get(url) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429]
    assert answers[0].text == "It is a lovely day.\n"
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 61


def test_django_project(example: Callable[..., Example]) -> None:
    """The home page is open; the API knows whose key it was; what is not there needs a key too."""
    project = example("django_project", SECRET_KEY="secret", REPORTS_KEY=SECRET)
    with project.running() as url:
        assert get(url).text == "Welcome.\n"
        assert get(f"{url}/api/whoami").status_code == 401
        assert get(f"{url}/api/whoami", SECRET).json() == {"key": "reports"}
        assert get(f"{url}/later").status_code == 401
        assert get(f"{url}/later", SECRET).status_code == 404


def test_mounted_beside(
    example: Callable[..., Example], provider: StandInProvider, variables: dict[str, str]
) -> None:
    """The app answers outside /v1 without a key, the gateway below it with one."""
    both = example("mounted_beside", **variables)
    with both.running() as url:
        assert get(url).text == get(f"{url}/any/page").text == "The app beside the gateway.\n"
        assert get(f"{url}/v1/models").status_code == 401
        assert not provider.requests
        token = both.create_key()
        assert get(f"{url}/v1/models", token).json()["data"][0]["id"] == "stand-in-large"


def test_every_example_is_tested() -> None:
    """No example is left out here."""
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"whole_gateway", "one_class", "django_project", "mounted_beside"}
