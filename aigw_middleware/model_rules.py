"""Rules over models: patterns, and where a request's model is judged.

A rule judges the model that is asked for in the end: after aliases, and again for every
candidate of a failover. Only the forwarder knows that one, so a gate hands its rule inwards in
the environ when there is a forwarder within, and judges what the body says when there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from ._options import several
from .denial import Denial, Judge, body_denial, judge_of
from .dialects import PLAIN, AnyOf, spoken
from .errors import BodyError, BodyInvalid
from .limits.capping import CAP_PATH
from .limits.wanted import wanted_output
from .named_models import NO_MODEL, bare_name, inner_models, named_models, needs_model
from .providers.catalogue import readings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

MODEL_RULES = "aigw.model_rules"
"""list of callables `(environ, provider, model) -> Denial | None`, judged by the forwarder before
each attempt; `model` is None on a path that names none. They hold no environ: a request's memory
is free when it is over, not when garbage is collected."""

NOT_ALLOWED = Denial(
    "model_not_allowed", "The model is not allowed for this key or gateway.", param="model"
)
ModelRule = Callable[["WSGIEnvironment", str | None, str | None], Denial | None]


class ModelRules:
    """Patterns over `provider/model`, matched without regard to case; `*` is the one wildcard.

    Args:
        allow: the models that may be used; None for all, empty for none.
        deny: those that may not, whatever `allow` says.

    Raises:
        ValueError: a pattern is empty or has characters that no model's name has.
    """

    def __init__(
        self, allow: Iterable[str] | None, deny: Iterable[str] = (), *, option: str = "models"
    ) -> None:
        self._allow = None if allow is None else _compile(option, allow)
        denied = several("deny", deny)
        self._denied = [str(pattern).lower() for pattern in denied]
        self._deny = _compile("deny", denied)
        # Where nobody knows whose a model is, one that somebody's is denied under this name is.
        names = [pattern.partition("/")[2] for pattern in denied]
        self._deny_names = _compile("deny", [name for name in names if name.strip("*")])

    def __bool__(self) -> bool:
        return self._allow is not None or bool(self._deny)

    def allows(self, provider: str | None, model: str) -> bool:
        """Whether `model` may be used, as it will be asked for; whose it is may not be known.

        Where the provider chooses (`*`, `gpt-image-*`) all of these have to be allowed.
        """
        names = _names(provider, model)
        if isinstance(model, AnyOf) and self._denies_some(provider, model):
            return False
        return not self._denies(provider, names) and (
            self._allow is None or _matches(self._allow, names)
        )

    def denies(self, provider: str | None, model: str) -> bool:
        """Whether `model` is one of those that may not be used, whatever else is allowed."""
        if isinstance(model, AnyOf) and self._denies_some(provider, model):
            return True
        if provider == "models":  # Google's own name for it, if it is Google's
            return self._denies(None, _names(None, model) | _names(provider, model))
        return self._denies(provider, _names(provider, model))

    def _denies(self, provider: str | None, names: set[str]) -> bool:
        return _matches(self._deny, names) or (
            provider is None and _matches(self._deny_names, names)
        )

    def _denies_some(self, provider: str | None, chosen: AnyOf) -> bool:
        return any(_may_be_of(provider, chosen.begins, pattern) for pattern in self._denied)

    def judge(self, provider: str | None, model: str | None) -> Denial | None:
        """Return the refusal for `model` of `provider`; a request without a model is refused."""
        if model is None:
            return Denial("model_not_allowed", "This path names no model and is not allowed.")
        return None if self.allows(provider, model) else NOT_ALLOWED


def _may_be_of(provider: str | None, begins: str, pattern: str) -> bool:
    """Whether a pattern may match some model of a provider whose name begins so."""
    owner, slash, model = pattern.partition("/")
    if slash and provider is not None and "*" not in owner and owner != provider.lower():
        return False
    fixed = (model if slash else pattern).partition("*")[0]
    return fixed.startswith(begins) or begins.startswith(fixed)


def _compile(option: str, patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(
        _pattern(option, spelt)
        for pattern in several(option, patterns)
        for spelt in dict.fromkeys((pattern, _as_asked(pattern)))
    )


def _as_asked(pattern: object) -> object:
    """Return a pattern without the `models/` that Google's own names begin with."""
    if not isinstance(pattern, str):
        return pattern
    owner, slash, model = pattern.partition("/")
    if slash and owner.lower() in ("google", "gemini"):
        return f"{owner}/{bare_name(model)}"
    return bare_name(pattern)


def _pattern(option: str, pattern: object) -> re.Pattern[str]:
    if not isinstance(pattern, str) or not re.fullmatch(r"[A-Za-z0-9._:/@+*-]+", pattern):
        raise ValueError(f"{option}: {pattern!r} is no pattern of a model's name")
    parts = re.split(r"\*+", pattern.lower())
    return re.compile(".*".join(map(re.escape, parts)))


def _names(provider: str | None, model: str) -> set[str]:
    names = {model.lower()}
    if provider:
        names.add(f"{provider}/{model}".lower())
    return names


def _matches(patterns: Iterable[re.Pattern[str]], names: set[str]) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns for name in names)


def judge_models(
    rules: ModelRules,
    environ: WSGIEnvironment,
    app: WSGIApplication,
    *,
    gate: str,
    hand_on: bool,
    optional: bool = False,
) -> Denial | None:
    """Judge the request's model, and hand the rule to a forwarder within.

    Where one is known to stand there it alone judges, the model that is asked for in the end.
    Behind layers of others there may be one or none: then what the body says is judged first.

    Args:
        rules: the rules.
        environ: the request.
        app: what the gate wraps.
        gate: the name of the gate.
        hand_on: False judges what the body says in any case, and changes nothing.
        optional: whether a request that names no model is let through.
    """
    if hand_on:
        rule = partial(_judge_final, rules, judge_of(environ, gate), optional)
        environ.setdefault(MODEL_RULES, []).append(rule)
        if has_final_judge(app):
            return None
    dialect, _, rest = spoken(environ)
    if dialect is PLAIN:
        return None
    try:
        models = named_models(environ, dialect, rest)
        inner = inner_models(environ, dialect, rest)
    except BodyError as error:
        return body_denial(error)
    # Which of them will be asked for nobody here can tell: each has to be allowed.
    found = [_judge_named(rules, environ, optional, one) for one in models or [None]]
    owner = readings(models[0])[0][0] if models else None
    found += [_judge_inner(rules, environ, optional, owner, one) for one in inner]
    return next((denial for denial in found if denial is not None), None)


def _judge_named(
    rules: ModelRules, environ: WSGIEnvironment, optional: bool, name: str | None
) -> Denial | None:
    """Judge a model by what its name may mean: one meaning allows it, and one denies it."""
    if name is None:
        return _judge_one(rules, environ, optional, None, None)
    meanings = readings(name)
    if any(rules.denies(*meaning) for meaning in meanings):
        return _judge_one(rules, environ, optional, *meanings[0]) or NOT_ALLOWED
    denials = [_judge_one(rules, environ, optional, *meaning) for meaning in meanings]
    return None if None in denials else denials[0]


def _judge_inner(
    rules: ModelRules, environ: WSGIEnvironment, optional: bool, owner: str | None, name: str
) -> Denial | None:
    """Judge a model that the provider of another one is to ask: most likely one of its own."""
    if owner is None:
        return _judge_named(rules, environ, optional, name)
    return _judge_one(rules, environ, optional, owner, name)


def _judge_final(
    rules: ModelRules,
    judge: Judge,
    optional: bool,
    environ: WSGIEnvironment,
    provider: str | None,
    model: str | None,
) -> Denial | None:
    """Judge what a forwarder will ask for; the gate's rule speaks."""
    denial = _judge_one(rules, environ, optional, provider, model)
    return None if denial is None else denial.of(judge)


def _judge_one(
    rules: ModelRules,
    environ: WSGIEnvironment,
    optional: bool,
    provider: str | None,
    model: str | None,
) -> Denial | None:
    try:
        if CAP_PATH not in environ:  # who has put one in has read the body
            wanted_output(environ)  # a cap that is none is refused, whoever would read it otherwise
        if model is None and not optional and needs_model(environ):
            raise BodyInvalid(NO_MODEL)
    except BodyError as error:
        return body_denial(error)
    return None if model is None and optional else rules.judge(provider, model)


def has_final_judge(app: object) -> bool:
    """Whether a forwarder that judges models stands within `app`, behind layers of ours.

    Only our own layers are looked through: they hand every request on, of others nobody knows.
    """
    while type(app).__module__.startswith(__package__):
        if getattr(app, "judges_models", False):
            return True
        app = getattr(app, "app", None)
    return False
