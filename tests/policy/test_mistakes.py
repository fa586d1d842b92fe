"""Documents with mistakes: each is told with its line, all at once, and nothing is started (POL-3)."""

from __future__ import annotations

import copy
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aigw_middleware import TrafficPolicy
from aigw_middleware.policy.mistakes import PolicyError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "policies").glob("*.yaml"))

HEAD = "on_http_request:\n  - name: r\n    actions:\n      - type: "
LIMIT = (
    "rate-limit\n        config:\n          name: n\n          algorithm: sliding_window\n"
    "          capacity: 100\n          rate: 60s\n          bucket_key: [conn.client_ip]\n"
)
JWT = (
    "jwt-validation\n        config:\n          issuer: {allow_list: [{value: i}]}\n"
    "          http: {tokens: [{type: jwt, method: header, name: authorization}]}\n"
    "          jws:\n            allowed_algorithms: [RS256]\n"
    "            keys: {sources: {additional_jkus: ['https://id.test/jwks']}}\n"
)
GATEWAY = "ai-gateway\n        config:\n          authentication: none\n          providers:\n"


def limit(before: str, after: str) -> str:
    assert before in LIMIT
    return HEAD + LIMIT.replace(before, after)


def token(before: str, after: str) -> str:
    assert before in JWT
    return HEAD + JWT.replace(before, after)


# a document, the line of its mistake, what is said
MISTAKES: dict[str, tuple[str, int, str]] = {
    # the document
    "no mapping": ("- a\n", 1, "a document is a mapping of phases, not a list"),
    "no phase": ("a: 1\n", 1, 'there is no phase "a"'),
    "an empty mapping": ("{}\n", 1, "a document has rules in"),
    "a misspelt phase": ("on_http_requests: []\n", 1, 'did you mean "on_http_request"'),
    "a phase of ngrok's": ("on_tcp_connect: []\n", 1, "known to ngrok, not supported here"),
    "events": ("on_event_stream_message: []\n", 1, "known to ngrok, not supported here"),
    "a map for a list": ("on_http_request:\n  name: x\n", 2, "is a list of rules, not a mapping"),
    "too many rules": ("on_http_request:\n" + "  - {type: deny}\n" * 101, 2, "at most 100 rules"),
    # rules
    "a rule that is a text": ("on_http_request:\n  - x\n", 2, "a rule is a mapping, not a text"),
    "no actions": ("on_http_request:\n  - name: x\n", 2, 'a rule has "actions", at least one'),
    "empty actions": ("on_http_request:\n  - actions: []\n", 2, "at least one"),
    "actions as a map": ("on_http_request:\n  - actions: {type: deny}\n", 2, "is a list, not a map"),
    "a misspelt field": (
        "on_http_request:\n  - expresions: []\n    actions: [{type: deny}]\n",
        2,
        'a rule has no field "expresions" \\(did you mean "expressions"',
    ),
    "a name that is a number": (
        "on_http_request:\n  - name: 5\n    actions: [{type: deny}]\n", 2, "a rule's name is a text",
    ),
    "expressions as a text": (
        "on_http_request:\n  - expressions: 'true'\n    actions: [{type: deny}]\n", 2,
        "must be a list, not a text",
    ),
    "an expression with ${}": (
        "on_http_request:\n  - expressions: ['${true}']\n    actions: [{type: deny}]\n", 2,
        "stands here without",
    ),
    "an expression that is no text": (
        "on_http_request:\n  - expressions: [true]\n    actions: [{type: deny}]\n", 2,
        "must be an expression as a text, not true or false",
    ),
    "an expression that does not parse": (
        "on_http_request:\n  - expressions:\n      - req.method ==\n    actions: [{type: deny}]\n", 3,
        "does not parse",
    ),
    "a variable that is not there": (
        "on_http_request:\n  - expressions:\n      - 'true'\n      - req.path == '/'\n"
        "    actions: [{type: deny}]\n", 4, 'did you mean "req.url.path"',
    ),
    "a rule that is never reached": (
        "on_http_request:\n  - type: deny\n  - type: deny\n", 3, "is never reached",
    ),
    # actions
    "no type": (HEAD.replace("type: ", "config: {}\n"), 4, 'an action has a "type"'),
    "an action that is a text": ("on_http_request:\n  - actions: [deny]\n", 2, "an action is a map"),
    "an unknown action": (HEAD + "rate-limt\n", 4, 'did you mean "rate-limit"'),
    "an action of ngrok's": (HEAD + "oauth\n", 4, '"oauth" is known to ngrok, not supported here'),
    "a field beside config": (HEAD + "deny\n        conf: {}\n", 5, 'no field "conf"'),
    "config as a list": (HEAD + "deny\n        config: []\n", 5, "must be a mapping, not a list"),
    "behind an end": (HEAD + "deny\n      - type: deny\n", 5, "is never reached: deny ends"),
    "the wrong phase": (
        "on_http_response:\n  - type: deny\n", 2, '"deny" is for on_http_request only',
    ),
    "two gateways": (
        "on_http_request:\n  - type: ai-gateway\n  - type: ai-gateway\n", 3, 'one "ai-gateway"',
    ),
    # rate-limit
    "a limit without a name": (limit("          name: n\n", ""), 6, '"name" is missing'),
    "a name too long": (limit("name: n", "name: " + "n" * 1024), 6, "at most 1023 characters"),
    "another algorithm": (limit("sliding_window", "sliding-window"), 7, 'did you mean "sliding_window"'),
    "no capacity": (limit("capacity: 100", "capacity: 0"), 8, "must be 1 to 2,000,000,000"),
    "a capacity that is a text": (limit("capacity: 100", "capacity: many"), 8, "whole number"),
    "a window too short": (limit("60s", "30s"), 9, "must be 60s to 24h, a multiple of 10s"),
    "a window not of ten": (limit("60s", "65s"), 9, "a multiple of 10s"),
    "a window too long": (limit("60s", "25h"), 9, "60s to 24h"),
    "a rate that is none": (limit("60s", "often"), 9, "must be the window's length"),
    "a rate that says otherwise": (limit("60s", "50/min"), 9, '"rate" says 50 and "capacity" says 100'),
    "no bucket": (limit("[conn.client_ip]", "[]"), 10, "must have 1 to 10 entries"),
    "eleven buckets": (limit("[conn.client_ip]", str(["req.method"] * 11)), 10, "1 to 10 entries"),
    "a bucket of nothing": (limit("conn.client_ip", "conn.client_id"), 10, 'mean "conn.client_ip"'),
    "enforce as a text": (limit("name: n\n", "name: n\n          enforce: maybe\n"), 7, "true or false"),
    # restrict-ips
    "a misspelt list": (HEAD + "restrict-ips\n        config:\n          alow: []\n", 6, 'mean "allow"'),
    "host bits": (
        HEAD + "restrict-ips\n        config:\n          allow:\n            - 10.0.0.1/8\n", 7,
        "host bits set; the network is 10.0.0.0/8",
    ),
    "no network": (HEAD + "restrict-ips\n        config: {allow: [x]}\n", 5, '"x" is no network'),
    "only deny": (HEAD + "restrict-ips\n        config: {deny: [10.0.0.0/8]}\n", 5, "0.0.0.0/0, ::/0"),
    "policies kept at ngrok": (
        HEAD + "restrict-ips\n        config: {ip_policies: [ipp_1]}\n", 5, "known to ngrok",
    ),
    "a network of the request": (
        HEAD + "restrict-ips\n        config: {allow: ['${conn.client_ip}']}\n", 5,
        "known only when a request comes",
    ),
    # jwt-validation
    "no issuer": (token("          issuer: {allow_list: [{value: i}]}\n", ""), 6, '"issuer" is missing'),
    "an empty issuer": (token("[{value: i}]", "[]"), 6, "must have 1"),
    "no token": (token("[{type: jwt, method: header, name: authorization}]", "[]"), 7, "1 to 10"),
    "a token in the body": (token("method: header", "method: body"), 7, "in a body are known to ngrok"),
    "a token in the query": (token("method: header", "method: query"), 7, "must be one of header, body"),
    "another type": (token("type: jwt", "type: jwe"), 7, 'did you mean "jwt"'),
    "no algorithm": (token("[RS256]", "[none]"), 9, '"none" is none of'),
    "no key set": (token("'https://id.test/jwks'", ""), 10, "1 to 100 entries"),
    "a key set over http": (token("https://id", "http://id"), 10, "must be https"),
    "claims of ours": (
        token("keys: {", "keys: {identification: {token_claims: [x5t]}, "), 10, "must be one of kid",
    ),
    # headers, answers
    "no headers": (HEAD + "add-headers\n        config: {headers: {}}\n", 5, "1 to 10 entries"),
    "a header's name": (HEAD + "add-headers\n        config: {headers: {'a b': c}}\n", 5, "no name of a"),
    "the user agent": (
        HEAD + "remove-headers\n        config: {headers: [user-agent]}\n", 5, "cannot be changed",
    ),
    "a hop-by-hop header": (
        HEAD + "add-headers\n        config: {headers: {connection: x}}\n", 5, "cannot be changed",
    ),
    "a value with a line end": (
        HEAD + 'add-headers\n        config: {headers: {x: "a\\nb"}}\n', 5, "no header holds",
    ),
    "an open template": (HEAD + "add-headers\n        config: {headers: {x: '${a'}}\n", 5, "not closed"),
    "a status": (HEAD + "deny\n        config: {status_code: 99}\n", 5, "must be 200 to 599"),
    "a body for deny": (HEAD + "deny\n        config: {body: x}\n", 5, 'there is no field "body"'),
    "variables as a map": (HEAD + "set-vars\n        config: {vars: {a: 1}}\n", 5, "mappings with one entry"),
    "a variable's name": (HEAD + "set-vars\n        config: {vars: [{a-b: 1}]}\n", 5, "no name of a variable"),
    "log without metadata": (HEAD + "log\n", 4, '"metadata" is missing'),
    "a pattern": (HEAD + "redirect\n        config: {from: '(', to: x}\n", 5, "RE2"),
    "a look behind": (HEAD + "url-rewrite\n        config: {from: '(?<=a)b', to: x}\n", 5, "RE2"),
    "a redirect that is none": (
        HEAD + "redirect\n        config: {from: a, to: b, status_code: 200}\n", 5, "300 to 399",
    ),
    "a credential": (HEAD + "basic-auth\n        config: {credentials: [ann]}\n", 5, "user:password"),
    "a short password": (HEAD + "basic-auth\n        config: {credentials: ['a:b']}\n", 5, "8 to 128"),
    "a key twice": (
        HEAD + "api-key-auth\n        config: {keys: {a: secret-1, b: secret-1}}\n", 5,
        "has the secret of another name",
    ),
    "a path": (HEAD + "api-key-auth\n        config: {keys: {a: b}, exempt: [x]}\n", 5, "exempt: "),
    "a pattern of models": (HEAD + "restrict-models\n        config: {allow: ['a b']}\n", 5, "allow: "),
    "a secret that is nowhere": (
        HEAD + "log\n        config: {metadata: {a: \"${secrets.get('v', 'n')}\"}}\n", 5,
        "AIGW_VAULT_V_N",
    ),
    # ai-gateway
    "a provider without an id": (HEAD + GATEWAY + "            - {base_url: 'http://h'}\n", 8, '"id" is'),
    "an unknown provider": (HEAD + GATEWAY + "            - id: opnai\n", 8, "not in the catalogue"),
    "a provider twice": (
        HEAD + GATEWAY + "            - {id: openai, api_keys: [{value: a}]}\n            - id: openAI\n", 9,
        'provider "openai" stands here twice',
    ),
    "an address": (HEAD + GATEWAY + "            - {id: x, base_url: 'ftp://h'}\n", 8, "http or https"),
    "keys as texts": (HEAD + GATEWAY + "            - {id: openai, api_keys: [sk-1]}\n", 8, "must be a map"),
    "a model's name": (HEAD + GATEWAY + "            - {id: openai, models: [{id: 'a b'}]}\n", 8, "no name"),
    "an alias twice": (
        HEAD + GATEWAY + "            - id: openai\n              api_keys: [{value: a}]\n"
        "              models: [{id: a, id_aliases: [x]}, {id: b, id_aliases: [X]}]\n", 8,
        "stands for two models",
    ),
    "an alias that is a model": (
        HEAD + GATEWAY + "            - id: openai\n              api_keys: [{value: a}]\n"
        "              models: [{id: a, id_aliases: [B]}, {id: b}]\n", 8,
        'the alias "b" is the id of a model',
    ),
    "a body to merge": (
        HEAD + GATEWAY.replace("authentication: none", "body: {}") + "            []\n", 6, "known to ngrok",
    ),
    "only configured, none configured": (
        HEAD + "ai-gateway\n        config: {only_allow_configured_providers: true}\n", 5, 'needs "providers"',
    ),
    "too many tokens": (HEAD + "ai-gateway\n        config: {max_input_tokens: 500001}\n", 5, "500,000"),
    "a timeout": (HEAD + "ai-gateway\n        config: {total_timeout: soon}\n", 5, "must be a duration"),
    "on_error": (HEAD + "ai-gateway\n        config: {on_error: stop}\n", 5, "one of halt, continue"),
    "another authentication": (HEAD + "ai-gateway\n        config: {authentication: off}\n", 5, "none, key"),
    "a strategy": (
        HEAD + "ai-gateway\n        config: {model_selection: {strategy: [ai.modelz]}}\n", 5,
        'did you mean "ai.models"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_line(name: str) -> None:
    """The line, the rule, and what would be right."""
    text, line, message = MISTAKES[name]
    with pytest.raises(PolicyError, match=message) as error:
        TrafficPolicy.parse(text, name="p.yaml")
    assert any(
        re.search(message, mistake.message) and mistake.line == line
        for mistake in error.value.mistakes
    ), str(error.value)
    assert all(re.match(r"p\.yaml:\d+:\d+: ", one) for one in str(error.value).splitlines())


def test_there_are_enough_of_them() -> None:
    """A table of at least sixty."""
    assert len(MISTAKES) >= 60


def test_all_mistakes_are_told_at_once() -> None:
    """In their order, with file, line, column and rule."""
    text = (
        "on_http_request:\n"
        "  - name: one\n    expressions: [req.path]\n    actions: [{type: dny}]\n"
        "  - actions:\n      - type: rate-limit\n        config: {name: x}\n"
    )
    with pytest.raises(PolicyError) as error:
        TrafficPolicy.parse(text, name="p.yaml")
    assert str(error.value).splitlines() == [
        'p.yaml:3:19: on_http_request rule 1 (one): there is no variable "req.path" '
        '(did you mean "req.url.path"?)',
        'p.yaml:4:22: on_http_request rule 1 (one): there is no action "dny" (did you mean "deny"?)',
        'p.yaml:7:17: on_http_request rule 2: "algorithm" is missing',
        'p.yaml:7:17: on_http_request rule 2: "capacity" is missing',
        'p.yaml:7:17: on_http_request rule 2: "rate" is missing',
        'p.yaml:7:17: on_http_request rule 2: "bucket_key" is missing',
    ]


def test_mistakes_of_a_file_name_it(tmp_path: Path) -> None:
    """`load` says which file; one that is not there too."""
    path = tmp_path / "gateway.json"
    path.write_text('{"on_http_request": [\n  {"type": "dney"}\n]}')
    with pytest.raises(ValueError, match=re.escape(f"{path}:2:12: ")):
        TrafficPolicy.load(path)
    with pytest.raises(ValueError, match="cannot be read"):
        TrafficPolicy.load(tmp_path / "absent.yaml")


def test_a_mistake_repeats_no_secret() -> None:
    """What stands in a secret's place is not in the message."""
    for text in (
        HEAD + "basic-auth\n        config: {credentials: ['sk-secret']}\n",
        HEAD + "api-key-auth\n        config: {keys: {a: 'sk-secret 1'}}\n",
        HEAD + GATEWAY + '            - {id: openai, api_keys: [{value: "sk-secret\\u20ac"}]}\n',
    ):
        with pytest.raises(PolicyError) as error:
            TrafficPolicy.parse(text)
        assert "sk-secret" not in str(error.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.just("${req.method}")


def mutated(document: Any, data: Any) -> Any:
    """Return a document with something of it changed, removed or doubled."""
    changed = copy.deepcopy(document)
    node = changed
    for _ in range(data.draw(st.integers(0, 8))):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        what = data.draw(st.sampled_from(["drop", "scalar", "list", "map", "rename"]))
        if what == "drop":
            del node[key]
        elif what == "rename" and isinstance(node, dict):
            node[data.draw(st.text(max_size=8))] = node.pop(key)
        else:
            scalar = data.draw(SCALARS)
            node[key] = {"list": [scalar], "map": {"a": scalar}}.get(what, scalar)
        break
    return changed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@given(data=st.data())
def test_a_changed_document_is_read_or_refused(path: Path, data: Any) -> None:
    """Whatever is changed in a good one: a policy, or mistakes with lines; never a traceback."""
    document = mutated(yaml.safe_load(path.read_text()), data)
    with suppress(PolicyError), pytest.MonkeyPatch.context() as patch:
        for name in ("ACCESS_TOKEN", "OPENAI", "TOKEN_ONE", "TOKEN_TWO"):
            patch.setenv(f"AIGW_VAULT_GATEWAY_{name}", f"secret-{name}-1234")
        TrafficPolicy.parse(json.dumps(document))
