"""Say which models may be asked for, and for how much.

Use it where a key alone should not open everything that a provider has. What is judged is the
model that is asked in the end: where an `UpstreamForwarder` stands within, it asks before each
candidate. It does not read prompts: what is said to an allowed model is not its affair. Only the
paths of AI APIs are judged, those that begin with `/v1/` or `/v1beta/` once SCRIPT_NAME is taken
off: a request for `/api/chat` of your own passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from ._options import flag
from ._paths import PathPatterns
from .body import put_members
from .denial import Denial, Judge, body_denial, judge_of
from .dialects import PLAIN, Output, spoken
from .environ import MODEL, PROVIDER, is_listed
from .errors import BodyError
from .gate import Gate
from .limits.capping import CAP_PATH, with_cap
from .limits.wanted import text_tokens, wanted_output
from .model_rules import MODEL_RULES, ModelRules, has_final_judge, judge_models
from .named_models import named_models
from .providers.catalogue import readings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from .splice import Path

_TOO_LONG = "The prompt is longer than the {} tokens that are allowed."
_TOO_MANY = "The request asks for more answers than the {} tokens that are allowed are enough for."
_TOO_MUCH_THOUGHT = "The tokens to think with leave nothing of the {} tokens that are allowed."
_TOO_MUCH = "The request asks for more than the {} tokens that are allowed."


class ModelAccess(Gate):
    """Let requests pass whose model is allowed; 403 `model_not_allowed` for any other.

    ::

        app = ModelAccess(app, ["openai/gpt-4o*", "anthropic/*"], deny=["*-preview"])

    Patterns are matched against `provider/model`, and against the model alone, without regard to
    case; `*` is the one wildcard. Judged is the model that is asked for in the end: by an
    `UpstreamForwarder` within, before each candidate, also through layers of others. Where nobody
    knows whose a model is, `deny=["openai/gpt-4o"]` refuses that name of anybody's. A key's own
    `models` are judged by `KeyAuth` in the same way: both must allow. So is each model that the
    provider is to ask by itself: Claude's advisor and fallbacks, those of tools (OpenAI's pictures,
    OpenRouter's), of graders and of the requests in a batch. Where the provider chooses one
    (`"fallbacks": "default"`, an `image_generation` tool that names none) all of its models must be
    allowed. Where rules are set, an AI path that names no model (`/v1/files`) is refused unless
    `paths` lists it, and so is a body that cannot be judged (400 `invalid_request`): one that names
    the model twice, is no JSON, has a `Content-Encoding`, or has more than 20 models asked (a
    batch: 100).

    Args:
        app: the wrapped WSGI application.
        allow: patterns of the models that may be asked for; None for all, empty for none.
        deny: patterns of those that may not, whatever `allow` says.
        paths: AI paths without a model that are let through, `/v1/files` or `/v1/files/*`. One
            that a body names there is judged all the same, however deep it stands.
        max_input_tokens: a longer prompt is 413 `input_tokens_exceeded`; estimated by the body's
            bytes, four a token.
        max_output_tokens: the most that a request may ask for, all of its answers together: put
            in where the client names no cap, and in the place of a larger one; of a batch, for
            each of its requests.
        lower_output: False refuses a larger cap, 400 `invalid_request`, and lowers none. None is
            lowered to what Claude is to think with (`thinking.budget_tokens`): that is refused.
        enforce: False reports in `aigw.decisions`, and refuses and changes nothing.

    Raises:
        ValueError: an option is wrong.
    """

    def __init__(
        self,
        app: WSGIApplication,
        allow: Iterable[str] | None = None,
        *,
        deny: Iterable[str] = (),
        paths: Iterable[str] = (),
        max_input_tokens: int | None = None,
        max_output_tokens: int | None = None,
        lower_output: bool = True,
        enforce: bool = True,
    ) -> None:
        super().__init__(app, enforce=enforce)
        rules = ModelRules(allow, deny, option="allow")
        self._rules = rules if rules else None
        self._paths = PathPatterns("paths", paths)
        self._max_input = _positive("max_input_tokens", max_input_tokens)
        self._max_output = _positive("max_output_tokens", max_output_tokens)
        self._lowers = flag("lower_output", lower_output)

    def judge(self, environ: WSGIEnvironment) -> Denial | None:
        """Return the refusal for what the request asks for, changing nothing."""
        return self._judge(environ, hand_on=False)

    def apply(self, environ: WSGIEnvironment) -> Denial | None:
        """Judge what is asked for, or hand the rules inwards, and lower a cap that is too high."""
        denial = self._judge(environ, hand_on=self.enforce)
        if denial is None and self.enforce and self._max_output is not None:
            self._lower(environ, self._max_output)
        if denial is None and self._rules is not None and not has_final_judge(self.app):
            _tell_model(environ, self._rules)
        return denial

    def _judge(self, environ: WSGIEnvironment, *, hand_on: bool) -> Denial | None:
        if self._rules is None and self._max_input is None and self._max_output is None:
            return None
        if spoken(environ)[0] is PLAIN:
            if hand_on:
                # A layer within may have it ask for an AI path: then it is judged there.
                rule = partial(self._judge_within, judge_of(environ, self.gate_name))
                environ.setdefault(MODEL_RULES, []).append(rule)
            return None
        try:
            return self._judge_model(environ, hand_on=hand_on) or self._judge_size(environ)
        except BodyError as error:
            return body_denial(error)

    def _judge_model(self, environ: WSGIEnvironment, *, hand_on: bool) -> Denial | None:
        if self._rules is None:
            return None
        # A path that is listed needs no model; one that names one is judged all the same.
        optional = is_listed(environ, self._paths)
        return judge_models(
            self._rules, environ, self.app, gate=self.gate_name, hand_on=hand_on, optional=optional
        )

    def _judge_within(
        self, judge: Judge, environ: WSGIEnvironment, provider: str | None, model: str | None
    ) -> Denial | None:
        """Judge what is forwarded in the end, and lower its cap; a rule for the forwarder."""
        try:
            denial = None if self._rules is None else self._rules.judge(provider, model)
            denial = denial or self._judge_size(environ)
            if denial is None and self._max_output is not None:
                self._lower(environ, self._max_output)
        except BodyError as error:
            denial = body_denial(error)
        return None if denial is None else denial.of(judge)

    def _judge_size(self, environ: WSGIEnvironment) -> Denial | None:
        if self._max_input is not None and text_tokens(environ) > self._max_input:
            return Denial("input_tokens_exceeded", _TOO_LONG.format(self._max_input))
        if self._max_output is None:
            return None
        output = wanted_output(environ)
        if output is None:
            return None
        if _together(output) > self._max_output:
            return Denial("invalid_request", _TOO_MANY.format(self._max_output), param="n")
        too_high = [] if CAP_PATH in environ else _too_high(output, self._max_output)
        if too_high and not self._lowers:
            message = _TOO_MUCH.format(self._max_output)
            return Denial("invalid_request", message, param=str(too_high[0][-1]))
        # Tools in between may be thought about for longer than the cap of an answer.
        if too_high and (output.cap or 0) > output.thought >= self._max_output:
            message = _TOO_MUCH_THOUGHT.format(self._max_output)
            return Denial("invalid_request", message, param="thinking")
        return None

    def _lower(self, environ: WSGIEnvironment, most: int) -> None:
        output = wanted_output(environ)
        if output is None:
            return
        each = most // _together(output)
        if output.batch is None and (not output.caps or CAP_PATH in environ):
            with_cap(environ, output.path, each, self)  # the client has named none
            return
        lacking = () if output.batch is None else output.batch.lacking
        put_members(environ, dict.fromkeys((*_too_high(output, most), *lacking), each))


def _together(output: Output) -> int:
    """Return how many answers a request asks for; of a batch, the request that asks for most."""
    return output.answers if output.batch is None else output.batch.together


def _too_high(output: Output, most: int) -> list[Path]:
    """Return where the client's caps are too high, if a request's answers get `most` together."""
    each = most // _together(output)
    named = (*output.caps.items(), *output.further.items())
    return [path for path, value in named if value > each]


def _tell_model(environ: WSGIEnvironment, rules: ModelRules) -> None:
    """Leave in the environ which model was let through; a forwarder, if one comes, knows better."""
    dialect, _, rest = spoken(environ)
    models = () if dialect is PLAIN else named_models(environ, dialect, rest)
    if models:
        meanings = readings(models[0])
        allowed = (meaning for meaning in meanings if rules.allows(*meaning))
        provider, environ[MODEL] = next(allowed, meanings[0])
        if provider is not None:
            environ[PROVIDER] = provider


def _positive(option: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{option}: {value!r} is no positive number of tokens")
    return value
