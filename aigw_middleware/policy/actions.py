"""The actions of documents: which fields each has, and the layer that it becomes.

An action whose name is that of a middleware builds that middleware. Sources: ngrok's pages on each
action, and for what is ours in addition the options of the class.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import re2

from .._addresses import NetworkSet, address_of
from .._headers import HOP_BY_HOP, is_token, is_value
from ..denial import Denial
from ..dialects import client_dialect
from ..environ import CLAIMS, DECISIONS, request_id
from ..header_rewriter import HeaderRewriter
from ..ip_allowlist import IPAllowlist
from ..rate_limiter import RateLimiter
from .answers import Own, sane_headers
from .basic_auth import BasicAuth
from .document import Node
from .expressions import EvaluationError, Expression
from .fields import (
    BAD,
    Anything,
    Boolean,
    Completed,
    Condition,
    Field,
    Fields,
    Integer,
    Kind,
    ListOf,
    MapOf,
    OneOrMore,
    Reading,
    Text,
    seconds,
)
from .state import State, state_of
from .steps import Noted, Place, Step, logger, say
from .templates import Template, completed, shown
from .variables import url_now, with_url

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from ..counters import Engine
    from ..key_auth import Keys
    from ..store import Store

    Layer = Callable[[WSGIApplication], WSGIApplication]

Config = dict[str, Any]
OnAnswer = Callable[[State], Own | None]


class Building(NamedTuple):
    """What actions are built with.

    Attributes:
        place: the rule that it is in.
        store: where the keys of providers are, and usage is booked; None for nowhere.
        keys: the gateway keys; None for none.
        counters: where limits are counted.
        checking: whether the document is only checked.
        number: what tells the action apart from others of the document.
        secrets: the secrets that the document uses.
    """

    place: Place
    store: Store | None
    keys: Keys | None
    counters: Engine
    checking: bool
    number: int
    secrets: Collection[str]


class Action(NamedTuple):
    """A kind of action.

    Attributes:
        fields: its configuration.
        layer: returns the layer that it becomes in the phase of requests.
        on_answer: returns what it does in the phase of answers; None where it is not for that one.
        guards: whether it may refuse or end a request, so that its rule must not be skipped.
        ends: whether nothing comes after it.
        check: notes what is wrong between its fields.
        doc: what it does.
    """

    fields: Fields
    layer: Callable[[Config, Building], Layer]
    on_answer: Callable[[Config, Building], OnAnswer] | None = None
    guards: bool = False
    ends: bool = False
    check: Callable[[Config, Node, Reading], None] | None = None
    doc: str = ""


# --- what fields hold


def _network(text: str) -> str | None:
    try:
        NetworkSet("", [text])
    except ValueError:
        try:
            suggested = ip_network(text, strict=False)
        except ValueError:
            return f'"{text}" is no network in CIDR form, like 203.0.113.0/24'
        return f'"{text}" has host bits set; the network is {suggested}'
    return None


def _header(name: str) -> str | None:
    if not is_token(name):
        return f'"{name}" is no name of a header'
    folded = name.lower().replace("_", "-")
    if folded in HOP_BY_HOP or folded in ("content-length", "user-agent"):
        return f'"{name}" cannot be changed'
    return None


def _header_value(text: str) -> str | None:
    return None if is_value(text) else "has characters that no header holds"


def _pattern(text: str) -> str | None:
    try:
        _compiled(text)
    except (re2.error, UnicodeEncodeError):
        return "is no regular expression that RE2 reads"
    return None


def _compiled(text: str) -> Any:
    options = re2.Options()
    options.log_errors = False  # type: ignore[attr-defined, unused-ignore]
    options.max_mem = 1 << 20  # type: ignore[attr-defined, unused-ignore]
    return re2.compile(text, options=options)


def _as_text(value: str | Template, state: State) -> str:
    return value.text_for(state) if isinstance(value, Template) else value


_ENFORCE = Field(Boolean(), doc="false: evaluate and set the variables, refuse nothing")


# --- restrict-ips


def _restrict_ips(config: Config, building: Building) -> Layer:
    options = _ip_options(config, building)
    networks = _networks(options)

    def note(state: State) -> None:
        _note_network(state, networks, allowed=state.environ[DECISIONS][-1].allowed)

    owner = building.place.owner
    return lambda app: IPAllowlist(Noted(app, note, owner), **options)


_Networks = dict[str, list[tuple[str, NetworkSet]]]


def _networks(options: Config) -> _Networks:
    return {
        name: [(text, NetworkSet(name, [text])) for text in options.get(name, ())]
        for name in ("allow", "deny")
    }


def _note_network(state: State, networks: _Networks, *, allowed: bool) -> None:
    """Leave behind what was decided, and by which network; empty where none of them matched."""
    action, address = "allow" if allowed else "deny", address_of(state.environ)
    matched = next(
        (text for text, one in networks[action] if address is not None and address in one), ""
    )
    state.actions["restrict_ips"] = {"action": action, "matched_cidr": matched}


def _ip_options(config: Config, building: Building) -> Config:
    given: Config = {name: config[name] for name in ("allow", "deny") if name in config}
    if building.checking:  # secrets that are not known stand for no network
        given = {name: [t for t in texts if _network(t) is None] or ["192.0.2.0/32"]
                 for name, texts in given.items()}  # fmt: skip
    return {**given, "enforce": config.get("enforce", True)}


def _restrict_ips_on_answer(config: Config, building: Building) -> OnAnswer:
    options = _ip_options(config, building)
    gate, networks = IPAllowlist(nobody, **options), _networks(options)

    def run(state: State) -> Own | None:
        denial = gate.judge(state.environ)
        _note_network(state, networks, allowed=denial is None)
        return denied(state.environ, denial) if denial and gate.enforce else None

    return run


def _check_ips(config: Config, node: Node, reading: Reading) -> None:
    if not config.get("allow"):
        reading.wrong(
            node,
            'without "allow" nobody is let in, whatever "deny" says; for all but "deny" write '
            "allow: [0.0.0.0/0, ::/0]",
        )


def denied(environ: WSGIEnvironment, denial: Denial) -> Own:
    """Return a refusal as an answer in the client's dialect."""
    document = client_dialect(environ).error(
        denial.status, denial.code, denial.message, request_id(environ), denial.param
    )
    headers = [("Content-Type", "application/json"), ("X-Aigw-Code", denial.code), *denial.headers]
    return Own(denial.status, headers, json.dumps(document).encode())


# --- rate-limit

_RATE = re.compile(r"(\d+)\s*/\s*(s|sec|second|m|min|minute|h|hour|d|day)").fullmatch
_RATE_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _rate(text: str) -> str | None:
    if _RATE(text):
        return None
    window = seconds(text)
    if window is None:
        return 'must be the window\'s length ("60s") or N/unit ("100/min")'
    if not 60 <= window <= 86400 or window % 10:
        return "must be 60s to 24h, a multiple of 10s"
    return None


def _window(rate: str) -> int:
    match = _RATE(rate)
    if match:
        return _RATE_UNITS[match[2][0]]
    return int(seconds(rate) or 0)


def _check_rate(config: Config, node: Node, reading: Reading) -> None:
    match = _RATE(config["rate"])
    if match and int(match[1]) != config["capacity"]:
        reading.wrong(
            node,
            f'"rate" says {match[1]} and "capacity" says {config["capacity"]}: "capacity" is how '
            'many requests may pass in one window, "rate" is the window\'s length',
            "rate",
        )


def _rate_limit(config: Config, building: Building) -> Layer:
    owner = building.place.owner
    expressions: list[Expression] = config["bucket_key"]

    def bucket(environ: WSGIEnvironment) -> str:
        state = state_of(environ, owner)
        values = []
        for expression in expressions:
            try:
                values.append(shown_key(expression.evaluate(state)))
            except EvaluationError as error:
                # What cannot be told apart is one bucket.
                say(building.place, "bucket_key fails, one bucket for all of these: %s", error)
                return ""
        return json.dumps(values)

    def note(state: State) -> None:
        decision = state.environ[DECISIONS][-1]
        state.actions["rate_limit"] = {
            "limited": not decision.allowed,
            "bucket_key": [expression.source for expression in expressions],
        }

    limits = f"{config['capacity']}/{_window(config['rate'])}s"
    return lambda app: RateLimiter(
        Noted(app, note, owner),
        limits,
        by=bucket,
        name=_limiter_name(config["name"]),
        counters=building.counters,
        enforce=config.get("enforce", True),
    )


def shown_key(value: Any) -> str:
    """Return a value of a `bucket_key`, different values as different texts."""
    return value if isinstance(value, str) else json.dumps(value, default=shown)


def _limiter_name(name: str) -> str:
    """Return a name that a header can hold."""
    plain = re.sub(r'["\\|]', "_", name)
    if plain.isascii() and plain.isprintable() and len(plain) <= 128 and plain == name:
        return plain
    digest = binascii.crc32(name.encode())
    return re.sub(r"[^ -~]", "_", plain)[:100] + f"-{digest:08x}"


# --- jwt-validation

_TOKEN_TYPES = ("jwt", "access_token", "id_token", "at+jwt", "it+jwt", "plain")
_VALUE = Fields({"value": Field(Text(static=True), required=True)})
_VALUES = Fields({"allow_list": Field(ListOf(_VALUE, 1), required=True)})


def _jwt_validation(config: Config, building: Building) -> Layer:
    from ..jwt_auth import JWTAuth

    issuers = [entry["value"] for entry in config["issuer"]["allow_list"]]
    audience = config.get("audience")
    audiences = None if audience is None else [one["value"] for one in audience["allow_list"]]
    jws = config["jws"]
    owner = building.place.owner

    def one(app: WSGIApplication, token: Config) -> WSGIApplication:
        noted = Noted(app, partial(_note_token, token), owner)
        return JWTAuth(
            noted,
            issuer=issuers,
            audience=audiences,
            algorithms=jws["allowed_algorithms"],
            jwks_url=jws["keys"]["sources"]["additional_jkus"],
            header=token["name"],
            prefix=token.get("prefix", ""),
        )

    def layer(app: WSGIApplication) -> WSGIApplication:
        for token in reversed(config["http"]["tokens"]):
            app = one(app, token)
        return Noted(app, lambda state: state.actions.pop("jwt_validation", None), owner)

    return layer


def _note_token(config: Config, state: State) -> None:
    name, prefix = config["name"], config.get("prefix", "").strip()
    arrived = state.arrived("HTTP_" + name.upper().replace("-", "_")).strip()
    header: Any = {}
    try:
        # It was found good, so that it begins with its prefix.
        encoded = arrived[len(prefix) :].strip().partition(".")[0]
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, binascii.Error):
        header = {}
    found: dict[str, Any] = state.actions.setdefault("jwt_validation", {"tokens": []})
    found["tokens"].append(
        {
            "header": header,
            "payload": dict(state.environ.get(CLAIMS, {})),
            "signature": arrived.rpartition(".")[2],
            "verified": True,
            "location": "header",
            "location_property": name.lower(),
        }
    )


def _algorithm(name: str) -> str | None:
    from ..jwt_auth import ALGORITHMS

    if name in ALGORITHMS:
        return None
    return f'"{name}" is none of {", ".join(ALGORITHMS)}'


def _jwks(text: str) -> str | None:
    from ..keys.jwks import RemoteKeySet

    try:
        RemoteKeySet(text)
    except ValueError as error:
        return str(error).partition(": ")[2]
    return None


_JWT_FIELDS = Fields(
    {
        "issuer": Field(_VALUES, required=True, doc="whose tokens are good; compared exactly"),
        "audience": Field(_VALUES, doc="one of which a token must name"),
        "http": Field(
            Fields(
                {
                    "tokens": Field(
                        ListOf(
                            Fields(
                                {
                                    "type": Field(Text(*_TOKEN_TYPES), required=True),
                                    "method": Field(Text("header", "body"), required=True),
                                    "name": Field(Text(form=_header), required=True),
                                    "prefix": Field(Text()),
                                }
                            ),
                            1,
                            10,
                        ),
                        required=True,
                        doc="where tokens are; all of them must be there",
                    )
                }
            ),
            required=True,
        ),
        "jws": Field(
            Fields(
                {
                    "allowed_algorithms": Field(ListOf(Text(form=_algorithm), 1), required=True),
                    "keys": Field(
                        Fields(
                            {
                                "sources": Field(
                                    Fields(
                                        {
                                            "additional_jkus": Field(
                                                ListOf(Text(form=_jwks), 1, 100), required=True
                                            )
                                        }
                                    ),
                                    required=True,
                                ),
                                "identification": Field(
                                    Fields({"token_claims": Field(ListOf(Text("kid")))})
                                ),
                            }
                        ),
                        required=True,
                    ),
                }
            ),
            required=True,
        ),
    }
)


def _check_jwt(config: Config, node: Node, reading: Reading) -> None:
    tokens = node.members["http"].members["tokens"].value
    for token in tokens if isinstance(tokens, list) else ():
        if token.members["method"].value == "body":
            reading.wrong(
                token, "tokens in a body are known to ngrok, not supported here", "method"
            )


# --- headers


def _add_headers(config: Config, building: Building) -> Layer:
    key = ("added", building.number)
    names = {name.lower(): value for name, value in config["headers"].items()}

    def run(state: State) -> Own | None:
        state.values[key] = {name: _as_text(value, state) for name, value in names.items()}
        state.actions["add_headers"] = {"headers_added": state.values[key]}
        return None

    def value_of(name: str) -> Callable[[WSGIEnvironment], str | None]:
        owner = building.place.owner
        return lambda environ: state_of(environ, owner).values.get(key, {}).get(name)

    changes = {
        "set": {name: value_of(name) for name in names if name == "host"},
        "add": {name: value_of(name) for name in names if name != "host"},
    }
    return lambda app: Step(HeaderRewriter(app, request=changes), run, building.place, skipped=app)


def _add_headers_on_answer(config: Config, building: Building) -> OnAnswer:
    def run(state: State) -> Own | None:
        values = {name.lower(): _as_text(value, state) for name, value in config["headers"].items()}
        pairs = sane_headers(values)
        if pairs is None:
            raise EvaluationError("a value is none that a header can hold")
        if state.answer is not None:
            state.answer.headers += pairs
        state.actions["add_headers"] = {"headers_added": values}
        return None

    return run


def _remove_headers(config: Config, building: Building) -> Layer:
    names = config["headers"]

    def note(state: State) -> None:
        state.actions["remove_headers"] = {"headers_removed": [name.lower() for name in names]}

    return lambda app: HeaderRewriter(
        Noted(app, note, building.place.owner), request={"remove": names}
    )


def _remove_headers_on_answer(config: Config, building: Building) -> OnAnswer:
    names = {name.lower() for name in config["headers"]}

    def run(state: State) -> Own | None:
        if state.answer is not None:
            kept = [pair for pair in state.answer.headers if pair[0].lower() not in names]
            state.answer.headers[:] = kept
        state.actions["remove_headers"] = {"headers_removed": sorted(names)}
        return None

    return run


# --- answers of one's own


def _custom_response(config: Config, building: Building) -> OnAnswer:
    def run(state: State) -> Own | None:
        body = _as_text(config.get("body", ""), state)
        values = {name: _as_text(value, state) for name, value in config.get("headers", {}).items()}
        headers = sane_headers(values)
        if headers is None:
            raise EvaluationError("a value is none that a header can hold")
        return Own(config.get("status_code", 200), headers, body.encode())

    return run


def _deny(config: Config, building: Building) -> OnAnswer:
    own = Own(config.get("status_code", 403), [])
    return lambda state: own


def _step(run: Callable[[Config, Building], OnAnswer]) -> Callable[[Config, Building], Layer]:
    """Return the layer of an action that is the same in both phases."""

    def layer(config: Config, building: Building) -> Layer:
        ready = run(config, building)
        return lambda app: Step(app, ready, building.place)

    return layer


# --- log, set-vars


def _log(config: Config, building: Building) -> OnAnswer:
    def run(state: State) -> Own | None:
        metadata = completed(config["metadata"], state)
        state.actions["log"] = {"metadata": metadata}
        logger.info("%s", json.dumps(metadata, default=shown))
        return None

    return run


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class _Vars(Kind):
    """A list of one-entry mappings; each may use what those before it have set."""

    def read(self, node: Node, reading: Reading) -> Any:
        if not isinstance(node.value, list) or not all(
            len(entry.members) == 1 for entry in node.value
        ):
            return reading.wrong(node, 'must be a list of mappings with one entry, "- name: value"')
        found = []
        for entry in node.value:
            ((name, inner),) = entry.members.items()
            if not _VARIABLE.fullmatch(name):
                found.append(reading.wrong(entry, f'"{name}" is no name of a variable', name))
                continue
            found.append((name, Anything().read(inner, reading)))
            reading.vars.add(name)
        return BAD if any(one is BAD or one[1] is BAD for one in found) else found

    def schema(self) -> dict[str, Any]:
        entry = {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "propertyNames": {"pattern": f"^{_VARIABLE.pattern}$"},
        }
        return {"type": "array", "items": entry}


def _set_vars(config: Config, building: Building) -> OnAnswer:
    def run(state: State) -> Own | None:
        for name, value in config["vars"]:
            state.vars[name] = completed(value, state)
        return None

    return run


# --- redirect, url-rewrite

_NAME = r"\d{1,2}|arg_[A-Za-z0-9_]+|[a-z_]+"
_NAMED = re.compile(rf"\$({_NAME}|\{{(?:{_NAME})\}})")


def _moved(config: Config, state: State) -> str | None:
    """Return the URL with what `from` finds in it replaced by `to`; None where it finds nothing.

    The URL as it is now: without a credential that was taken out of it, and as rewritten before.
    """
    before = url_now(state.environ)
    match = config["pattern"].search(before)
    if match is None:
        return None
    target = _NAMED.sub(partial(_named, state, match), _as_text(config["to"], state))
    return with_url(before[: match.start()] + target + before[match.end() :])


def _named(state: State, match: Any, found: re.Match[str]) -> str:
    """Return what a name in `to` stands for: a group of `from`, or a part of the request."""
    name = found[1].strip("{}")
    if name.isdigit():
        return (match.group(int(name)) or "") if int(name) <= match.re.groups else ""
    try:
        parts = urlsplit(url_now(state.environ))
        host, port = parts.hostname or "", parts.port
    except ValueError:  # by the client's own `Host`
        raise EvaluationError("the request's host is none") from None
    if name.startswith("arg_"):
        from urllib.parse import parse_qs

        return parse_qs(parts.query, keep_blank_values=True).get(name[4:], [""])[0]
    known = {
        "args": parts.query,
        "query_string": parts.query,
        "is_args": "?" if parts.query else "",
        "uri": parts.path + (f"?{parts.query}" if parts.query else ""),
        "scheme": parts.scheme,
        "host": host,
        "port": str(port or {"https": 443}.get(parts.scheme, 80)),
        "authority": parts.netloc,
        "user": "",
        "is_user": "",
    }
    return known.get(name, found[0])


def _redirect(config: Config, building: Building) -> OnAnswer:
    config = {**config, "pattern": _compiled(config["from"])}

    def run(state: State) -> Own | None:
        target = _moved(config, state)
        if target is None:
            return None
        values = {name: _as_text(value, state) for name, value in config.get("headers", {}).items()}
        values = {name: text for name, text in values.items() if name.lower() != "location"}
        headers = sane_headers({"Location": target, **values})
        if headers is None:
            raise EvaluationError("a value is none that a header can hold")
        return Own(config.get("status_code", 302), headers)

    return run


def _url_rewrite(config: Config, building: Building) -> OnAnswer:
    config = {**config, "pattern": _compiled(config["from"])}

    def run(state: State) -> Own | None:
        target = _moved(config, state)
        if target is not None:
            _go_to(state.environ, target, url_now(state.environ))
        return None

    return run


def _go_to(environ: WSGIEnvironment, target: str, before: str) -> None:
    """Have the request ask for another URL."""
    from urllib.parse import unquote_to_bytes

    try:
        parts, old = urlsplit(target), urlsplit(before)
    except ValueError:
        raise EvaluationError("what it is rewritten to is no URL") from None
    if not parts.path.startswith("/"):
        raise EvaluationError("what it is rewritten to has no path")
    environ["SCRIPT_NAME"] = ""
    environ["PATH_INFO"] = unquote_to_bytes(parts.path).decode("latin-1")
    environ["QUERY_STRING"] = parts.query
    # The raw target is another one's now.
    for key in ("RAW_URI", "REQUEST_URI"):
        if key in environ:
            environ[key] = parts.path + (f"?{parts.query}" if parts.query else "")
    if parts.netloc and parts.netloc != old.netloc:
        environ["HTTP_HOST"] = parts.netloc


# --- basic-auth


def _credential(text: str) -> str | None:
    user, colon, password = text.partition(":")
    if not colon or not user:
        return "must be user:password"
    return None if 8 <= len(password) <= 128 else "a password has 8 to 128 characters"


def _realm(text: str) -> str | None:
    return None if text.isascii() and text.isprintable() else "must be printable ASCII"


def _basic_auth(config: Config, building: Building) -> Layer:
    def note(state: State) -> None:
        allowed = state.environ[DECISIONS][-1].allowed
        state.actions["basic_auth"] = {"authorized": allowed}

    options = {name: config[name] for name in ("realm", "enforce") if name in config}
    owner = building.place.owner
    return lambda app: BasicAuth(Noted(app, note, owner), config["credentials"], **options)


# --- ours in addition


def api_key_auth(config: Config, building: Building) -> Layer:
    """Return the layer of `api-key-auth`: `KeyAuth` with its options by name."""
    from ..key_auth import KeyAuth
    from ..keys import StaticKeys

    options = {name: value for name, value in config.items() if name != "keys"}
    keys: Any
    if "keys" in config:
        secrets = config["keys"]
        if building.checking:  # several secrets that are not known are not the same one
            secrets = {name: f"{value}-{name}" for name, value in secrets.items()}
        keys = StaticKeys(secrets)
    elif building.keys is not None:
        keys = building.keys
    elif building.checking:
        keys = StaticKeys({})
    else:
        raise ValueError("keys: name some, or give the policy a store that has keys")
    return lambda app: KeyAuth(app, keys, counters=building.counters, **options)


def _restrict_models(config: Config, building: Building) -> Layer:
    from ..model_access import ModelAccess

    return lambda app: ModelAccess(app, **config)


def nobody(environ: WSGIEnvironment, start_response: Any) -> list[bytes]:
    """Stand for an application where an action is only tried out."""
    start_response("404 Not Found", [])
    return []


TOKENS = Integer(1, 500_000)
_STATUS = Integer(200, 599)
_HEADERS = MapOf(Completed(_header_value), 1, 10, name=_header)

ACTIONS: dict[str, Action] = {
    "restrict-ips": Action(
        Fields(
            {
                "allow": Field(ListOf(Text(static=True, form=_network)), doc="networks (CIDR)"),
                "deny": Field(ListOf(Text(static=True, form=_network)), doc="beats allow"),
                "enforce": _ENFORCE,
            },
            unsupported=("ip_policies",),
        ),
        _restrict_ips,
        _restrict_ips_on_answer,
        guards=True,
        check=_check_ips,
        doc="let pass whose address is allowed and not denied: 403",
    ),
    "rate-limit": Action(
        Fields(
            {
                "name": Field(Text(most=1023), required=True),
                "algorithm": Field(Text("sliding_window"), required=True),
                "capacity": Field(Integer(1, 2_000_000_000), required=True, doc="in one window"),
                "rate": Field(Text(form=_rate), required=True, doc="the window's length"),
                "bucket_key": Field(ListOf(Condition(), 1, 10), required=True, doc="CEL"),
                "enforce": _ENFORCE,
            }
        ),
        _rate_limit,
        guards=True,
        check=_check_rate,
        doc="let pass so many requests in a window: 429",
    ),
    "jwt-validation": Action(
        _JWT_FIELDS,
        _jwt_validation,
        guards=True,
        check=_check_jwt,
        doc="ask for tokens of an identity provider: 401",
    ),
    "basic-auth": Action(
        Fields(
            {
                "credentials": Field(
                    ListOf(Text(static=True, form=_credential), 1, 10),
                    required=True,
                    secret=True,
                    doc="user:password",
                ),
                "realm": Field(Text(most=128, form=_realm)),
                "enforce": _ENFORCE,
            }
        ),
        _basic_auth,
        guards=True,
        doc="ask for a user and a password: 401",
    ),
    "add-headers": Action(
        Fields({"headers": Field(_HEADERS, required=True)}),
        _add_headers,
        _add_headers_on_answer,
        doc="append headers",
    ),
    "remove-headers": Action(
        Fields({"headers": Field(ListOf(Text(form=_header), 1, 10), required=True)}),
        _remove_headers,
        _remove_headers_on_answer,
        doc="remove headers",
    ),
    "custom-response": Action(
        Fields(
            {
                "status_code": Field(_STATUS),
                "body": Field(Completed()),
                "headers": Field(MapOf(Completed(_header_value), 0, 10, name=_header)),
            }
        ),
        _step(_custom_response),
        _custom_response,
        guards=True,
        ends=True,
        doc="answer with this",
    ),
    "deny": Action(
        Fields({"status_code": Field(_STATUS)}),
        _step(_deny),
        guards=True,
        ends=True,
        doc="refuse, without a body",
    ),
    "log": Action(
        Fields({"metadata": Field(MapOf(Anything()), required=True)}),
        _step(_log),
        _log,
        doc="write a line of JSON to the logger aigw_middleware.policy",
    ),
    "set-vars": Action(
        Fields({"vars": Field(_Vars(), required=True)}),
        _step(_set_vars),
        _set_vars,
        doc="set variables for what comes after it in this phase",
    ),
    "redirect": Action(
        Fields(
            {
                "from": Field(Text(form=_pattern), required=True, doc="RE2, over the whole URL"),
                "to": Field(Completed(), required=True),
                "status_code": Field(Integer(300, 399)),
                "headers": Field(MapOf(Completed(_header_value), 0, 10, name=_header)),
            }
        ),
        _step(_redirect),
        doc="send the client elsewhere",
    ),
    "url-rewrite": Action(
        Fields(
            {
                "from": Field(Text(form=_pattern), required=True, doc="RE2, over the whole URL"),
                "to": Field(Completed(), required=True),
            }
        ),
        _step(_url_rewrite),
        doc="ask for another URL",
    ),
    "api-key-auth": Action(
        Fields(
            {
                "keys": Field(MapOf(Text(static=True), 1), secret=True, doc="fixed ones, by name"),
                "endpoint": Field(Text()),
                "exempt": Field(OneOrMore(Text())),
                "headers": Field(OneOrMore(Text(form=_header))),
                "query_parameter": Field(Text()),
                "paths": Field(ListOf(Text()), doc="AI paths without a model, for all keys"),
                "enforce": _ENFORCE,
            }
        ),
        api_key_auth,
        guards=True,
        doc="ask for a gateway key (ours): 401",
    ),
    "restrict-models": Action(
        Fields(
            {
                "allow": Field(ListOf(Text()), doc="patterns over provider/model"),
                "deny": Field(ListOf(Text()), doc="beats allow"),
                "paths": Field(ListOf(Text()), doc="AI paths that name no model"),
                "max_input_tokens": Field(TOKENS),
                "max_output_tokens": Field(TOKENS),
                "lower_output": Field(Boolean(), doc="false refuses a larger cap"),
                "enforce": _ENFORCE,
            }
        ),
        _restrict_models,
        guards=True,
        doc="let pass which models are allowed (ours): 403",
    ),
}
"""The actions by their type, but for `ai-gateway`."""

UNSUPPORTED = (
    "request-body-find-replace", "response-body-find-replace", "sse-find-replace", "http-request",
    "circuit-breaker", "compress-response", "verify-webhook", "owasp-crs-request",
    "owasp-crs-response", "oauth", "openid-connect", "saml", "saml-sso", "forward-internal",
    "close-connection", "terminate-tls",
)  # fmt: skip
"""What ngrok has and this does not."""


def option_of(error: ValueError, config: Mapping[str, Any]) -> str | None:
    """Return the field that a middleware's error is about; None for none of them."""
    name = str(error).partition(":")[0]
    return name if name in config else None
