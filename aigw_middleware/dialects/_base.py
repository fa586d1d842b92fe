"""What the other rooms ask of a dialect."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache, reduce
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

from .._paths import LONGEST
from ..errors import BodyInvalid
from ..splice import Path
from ..usage.figures import Details, sane_tokens

Json = dict[str, Any]
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""What a whole event of a stream ends with; an event of ours must not stand within another."""


class Batch(NamedTuple):
    """What the requests in a batch ask for, beside their caps.

    Attributes:
        most: tokens of all answers of those that name a cap, at most.
        uncapped: how many answers the others ask for.
        lacking: where a cap would be written of each of these.
        together: the most answers that one request asks for.
    """

    most: int
    uncapped: int
    lacking: tuple[Path, ...]
    together: int


Place = tuple[str, ...]
"""Where something stands in a document: names of members, `*` for each element of a list or member
of an object."""
ANYWHERE: Place = ("**",)
"""Any object of a body, but for what is a user's own."""
_OWN = frozenset(
    {
        "content", "instructions", "item", "item_schema", "messages", "metadata", "parameters",
        "properties", "sample", "schema", "template", "tools",
    }
)  # fmt: skip
"""Members in which a user's own data stands, and schemas of it."""


class AnyOf(str):
    """In the place of a model's name: what the names begin with of which the provider chooses one.

    It ends in `*`, which no model's name has.
    """

    @property
    def begins(self) -> str:
        """What the names begin with."""
        return self.removesuffix("*")


ANY_MODEL = AnyOf("*")

_MOST_BATCHED = 100_000
"""Requests in a batch: https://docs.anthropic.com/en/docs/build-with-claude/batch-processing"""


class Output(NamedTuple):
    """How much text a request asks for.

    Attributes:
        answers: how many answers.
        path: where in the body a cap would be written; empty where none can be, and in a batch.
        caps: the most tokens of one answer, as the client names them, by where they stand.
        batch: what the requests of a batch ask for together; None for a single one.
        thought: of one answer, the tokens that are to be thought with; a cap has to be larger.
        fixed: of all answers, the tokens that the body itself tells; None where it does not.
        further: caps of models that may answer after it, as `caps`.
        tries: how many models may answer one after the other, each of which is billed.
    """

    answers: int
    path: tuple[str, ...]
    caps: Mapping[Path, int]
    batch: Batch | None = None
    thought: int = 0
    fixed: int | None = None
    further: Mapping[Path, int] = MappingProxyType({})
    tries: int = 1

    @property
    def cap(self) -> int | None:
        """The largest of them; None where the client names none."""
        return max(self.caps.values(), default=None)

    @property
    def most(self) -> int | None:
        """How many tokens all answers may have together; None where the client names no cap."""
        if self.cap is None:
            return self.fixed
        left = self.tries - len(self.further)
        return self.cap * self.answers * left + sum(self.further.values())


class Tier(Enum):
    """What is billed, of the price that a model has."""

    WHOLE = 1
    BATCH = 2
    """Half."""
    FLEX = 3
    """Half, of those who sell what may wait for less."""
    NEAR = 4
    """A tenth more, for what is computed in one country."""
    NEAR_BATCH = 5
    UNKNOWN = 6
    """More than that, for speed, by how much is another price of each model's."""


_WHOLE = (
    "", "auto", "default", "standard", "standard_only", "unspecified", "scale", "on_demand",
    "on-demand",
)  # fmt: skip


def tier_of(name: object) -> Tier:
    """Return what a service tier is billed at, by its name; of one that is not known nobody knows.

    https://developers.openai.com/api/docs/pricing, https://ai.google.dev/gemini-api/docs/pricing
    """
    if name is None or name == "default":  # nearly always
        return Tier.WHOLE
    text = name.lower().removeprefix("service_tier_") if isinstance(name, str) else "?"
    if text in _WHOLE:
        return Tier.WHOLE
    return {"flex": Tier.FLEX, "batch": Tier.BATCH}.get(text, Tier.UNKNOWN)


class Tokens(NamedTuple):
    """What an answer says that it has used.

    Attributes:
        input: all tokens of the request, those of caches included.
        output: all tokens of the answer, reasoning included.
        cached: those of the input that were read from a cache.
        written: those of the input that were written to a cache.
        reasoning: those of the output that were spent on reasoning.
        details: those of kinds that may have a price of their own, and searches; see `Price.cost`.
        others: what models beside the one that was asked have used, each by its name (None where
            nobody tells it); the other figures leave that out.
        is_all: whether nothing counts that was told before, earlier in a stream.
        tier: at which part of the model's price they are billed.
    """

    input: int
    output: int
    cached: int = 0
    written: int = 0
    reasoning: int = 0
    details: Details = ()
    others: tuple[tuple[str | None, Tokens], ...] = ()
    is_all: bool = False
    tier: Tier = Tier.WHOLE

    def plus(self, more: Tokens) -> Tokens:
        """Return the sum of both, but for what others have used."""
        return self._replace(
            input=self.input + more.input,
            output=self.output + more.output,
            cached=self.cached + more.cached,
            written=self.written + more.written,
            reasoning=self.reasoning + more.reasoning,
            details=merged_details(operator.add, self.details, more.details),
        )

    def together(self) -> Tokens:
        """Return what all models have used."""
        return reduce(Tokens.plus, (tokens for _, tokens in self.others), self)


class Later(NamedTuple):
    """What an answer tells of something that was made before, and tells whoever asks again.

    Attributes:
        id: what was made, by the vendor's own id behind the path of its kind.
        model: the model that made it; None where nobody tells it.
        tokens: what it has used.
        sums: whether these are sums of many answers.
    """

    id: str
    model: str | None
    tokens: Tokens
    sums: bool = False


def later_of(
    id_: str, one: Json, tokens: Tokens | None, *, batched: bool, sums: bool = False
) -> Iterator[Later]:
    """Yield what a document tells whose model stands in it; nothing for no tokens.

    OpenAI, Anthropic and Google all take half the price of what is made in a batch:
    https://platform.openai.com/docs/guides/batch,
    https://docs.anthropic.com/en/docs/build-with-claude/batch-processing,
    https://ai.google.dev/gemini-api/docs/batch-api
    """
    if tokens is None:
        return
    model = one.get("model")
    name = model.rpartition("models/")[2] if isinstance(model, str) else None
    if batched:
        tier = Tier.NEAR_BATCH if tokens.tier is Tier.NEAR else Tier.BATCH
        others = tuple((other, used._replace(tier=tier)) for other, used in tokens.others)
        tokens = tokens._replace(tier=tier, others=others)
    created = one.get("created_at")  # some let clients choose an id
    if isinstance(created, int | float):
        id_ = f"{id_} {int(created)}"
    yield Later(id_, name, tokens, sums)


def details_of(**figures: int) -> Details:
    """Return the figures that are not 0."""
    return tuple((name, number) for name, number in figures.items() if number)


def merged_details(merge: Callable[[int, int], int], one: Details, other: Details) -> Details:
    """Return the details of both, those of one name merged."""
    if not one or not other:
        return one or other
    found = dict(one)
    for name, number in other:
        found[name] = merge(found[name], number) if name in found else number
    return tuple(found.items())


class Takes(NamedTuple):
    """What a path takes.

    Attributes:
        json: whether its POST body is a JSON object.
        model: whether that must name a model.
        models: whether that may name further ones in `models`.
        form: whether its POST body is a form with a `model`.
        named: the model that stands in the path itself; None for none.
        nothing: whether its POST makes no tokens.
        unpriced: whether its POST costs something else than tokens.
        further: whether its body may have the provider ask further models by itself.
        inner: where in its body the objects stand that name these.
        anywhere: whether all objects of its body do.
        firsts: members of its body that have to do with these.
        odd: the same in other spellings, which some readers take for them.
        later: whether it tells what was made before.
        again: whether what answers its POST may be told again, by its id.
    """

    json: bool
    model: bool
    models: bool
    form: bool
    named: str | None
    nothing: bool
    unpriced: bool
    further: bool
    inner: tuple[Place, ...]
    anywhere: bool
    firsts: frozenset[str]
    odd: frozenset[str]
    later: bool
    again: bool


class Dialect:
    """One wire dialect.

    Attributes:
        name: `openai`, `anthropic`, `gemini`, or `plain` for no AI API.
        prefixes: the path prefixes that stand for a provider's base URL.
        needs_json: paths (without the prefix) whose POST body is a JSON object.
        needs_model: those of them whose JSON body must name a model.
        takes_models: those of them whose JSON body may name further ones in `models`.
        takes_form: paths whose POST body is a form with a `model`.
        makes_nothing: paths (without the prefix) of which a POST makes no tokens: it stores, looks
            up, counts or ends something.
        unpriced: paths (without the prefix) whose POST costs something else than the tokens of
            the model that it names.
        tells_later: paths (without the prefix) that tell what was made before: in a batch, or in
            the background.
        told_again: paths (without the prefix) of which what answers a POST may be told again, to
            who asks for it by its id.
        inner: paths (without the prefix) whose body may have the provider ask models by itself,
            beside the one that the request is for, and where in JSON the objects stand that name
            these.
    """

    name: str
    prefixes: tuple[str, ...] = ("/v1",)
    needs_json: re.Pattern[str] = re.compile(r"(?!)")
    needs_model: re.Pattern[str] = re.compile(r"(?!)")
    takes_models: re.Pattern[str] = re.compile(r"(?!)")
    takes_form: re.Pattern[str] = re.compile(r"(?!)")
    makes_nothing: re.Pattern[str] = re.compile(r"(?!)")
    unpriced: re.Pattern[str] = re.compile(r"(?!)")
    choosing: frozenset[str] = frozenset()
    """Members of a body that `further` looks into beside `inner`."""
    inner_fields: frozenset[str] = frozenset()
    """Fields of forms in which such a model stands."""
    tells_later: re.Pattern[str] = re.compile(r"(?!)")
    later_lines: re.Pattern[str] = re.compile(r"(?!)")
    """Those of them whose answer is a document a line."""
    told_again: re.Pattern[str] = re.compile(r"(?!)")
    inner: tuple[tuple[re.Pattern[str], tuple[Place, ...]], ...] = ()

    def error(
        self, status: int, code: str, message: str, request_id: str, param: str | None
    ) -> Json:
        """Return the body of an error answer."""
        raise NotImplementedError

    def error_event(self, path: str, error: Json) -> bytes:
        """Return `error` as an event of an event stream that answers `path`."""
        return _event(None, error)

    model_path: re.Pattern[str] = re.compile(r"/models/(.+?)/?")
    """Paths (without the prefix) in which a model's name stands: its first group."""

    def takes(self, path: str) -> Takes:
        """Return what `path` (without the prefix) takes."""
        return (_takes if len(path) <= LONGEST else _takes.__wrapped__)(self, path)

    def with_model(self, path: str, model: str) -> str:
        """Return `path` with another model's name, where one stands in it."""
        match = self.model_path.fullmatch(path)
        return path if match is None else path[: match.start(1)] + model + path[match.end(1) :]

    def cap_name(self, path: str, model: str) -> tuple[str, ...] | None:
        """Return where a cap stands that a request for `model` gets; None where it is the same."""
        return None

    def rest(self, path: str) -> str:
        """Return a path of this dialect without the prefix that stands for the base URL."""
        return next(path[len(p) :] for p in self.prefixes if path.startswith(p + "/"))

    def output(self, path: str, document: Mapping[str, Any]) -> Output | None:
        """Return how much text a request asks for; None where its path makes none.

        Raises:
            BodyInvalid: a cap or a number of answers is no positive whole number.
        """
        return None

    def further(self, path: str, document: Mapping[str, Any]) -> Iterator[object]:
        """Yield what stands in the places of models that the provider is to ask by itself.

        `AnyOf` where it chooses; what is no name is for the caller to refuse.

        Args:
            path: the path that is asked for, without the prefix.
            document: the body.
        """
        takes = self.takes(path)
        if takes.anywhere:
            yield from map(_agents_model, objects_in(document, skips=document))
        for place in takes.inner:
            if place[0] in document:
                for holder in values_at(document, place):
                    yield from named_in(holder)

    def tier(self, document: Mapping[str, Any]) -> Tier:
        """Return what a request asks to be billed at, by its body."""
        return tier_of(document.get("service_tier"))

    def tier_told(self, headers: Sequence[tuple[str, str]]) -> Tier:
        """Return what the head of an answer tells that it is billed at."""
        return Tier.WHOLE

    def tokens(self, document: Mapping[str, Any]) -> Tokens | None:
        """Return what an answer, or an event of one, tells of tokens; None for nothing."""
        return None

    def later(self, path: str, document: Mapping[str, Any]) -> Iterator[Later]:
        """Yield what a document tells of something that was made before, once that is over.

        Args:
            path: the path that was asked for, without the prefix.
            document: the answer's, or a line's or an event's of it.
        """
        yield from ()

    def is_usage_alone(self, document: Mapping[str, Any]) -> bool:
        """Whether an event holds nothing but the usage, for who has asked for it."""
        return False

    def has_said_all(self, document: Mapping[str, Any]) -> bool:
        """Whether with an event, whose data is `document`, all text of a stream has come."""
        return False

    def is_last(self, event: bytes, document: Mapping[str, Any] | None) -> bool:
        """Whether an event, whose data is `document` (None for no object), ends a stream."""
        return False

    def __repr__(self) -> str:
        return f"<dialect {self.name}>"


@lru_cache(maxsize=1024)
def _takes(dialect: Dialect, path: str) -> Takes:
    """Match a path once for all requests that ask for it."""
    named = dialect.model_path.fullmatch(path)
    found = [places for pattern, places in dialect.inner if pattern.fullmatch(path)]
    inner = tuple(place for places in found for place in places if place != ANYWHERE)
    firsts = frozenset(place[0] for place in inner) | (dialect.choosing if found else frozenset())
    return Takes(
        dialect.needs_json.fullmatch(path) is not None,
        dialect.needs_model.fullmatch(path) is not None,
        dialect.takes_models.fullmatch(path) is not None,
        dialect.takes_form.fullmatch(path) is not None,
        None if named is None else named[1],
        dialect.makes_nothing.fullmatch(path) is not None,
        dialect.unpriced.fullmatch(path) is not None,
        bool(found),
        inner,
        any(ANYWHERE in places for places in found),
        firsts,
        frozenset(odd for first in firsts for odd in spellings(first)),
        dialect.tells_later.fullmatch(path) is not None,
        dialect.told_again.fullmatch(path) is not None,
    )


@lru_cache(maxsize=256)
def spellings(name: str) -> frozenset[str]:
    """Return a name in all other mixtures of capitals and small letters."""
    letters = zip(name, name.upper(), strict=True)
    return frozenset(map("".join, product(*map(set, letters)))) - {name}


def values_at(document: Any, place: Place) -> list[Any]:
    """Return what stands at a place, wherever that is; empty for nothing."""
    found = [document]
    for name in place:
        if name == "*":
            found = [one for value in found for one in _members(value)]
        else:
            found = [
                one
                for value in found
                if type(value) is dict and (one := value.get(name)) is not None
            ]
    return found


def _members(value: Any) -> Iterable[Any]:
    if type(value) is dict:
        return value.values()
    return value if type(value) is list else ()


def objects_in(
    value: Any, *, skips: object = None, beyond: frozenset[str] = _OWN
) -> Iterator[dict[str, Any]]:
    """Yield all objects in a value, but `skips`, and what stands in the members `beyond`."""
    left = [value]
    while left:
        one = left.pop()
        if type(one) is list:
            left += one
        elif type(one) is dict:
            if one is not skips:
                yield one
            left += [member for name, member in one.items() if name not in beyond]


def named_in(holder: Any) -> Iterator[object]:
    """Yield the model that an object names; itself where that is spelt as some readers take it."""
    if type(holder) is dict:
        if not spellings("model").isdisjoint(holder):
            yield holder
        yield holder.get("model")


def _agents_model(holder: dict[str, Any]) -> object:
    """Return the model that an agent, a session or a grader names; None for none.

    What is no text, and no object with one, is something else of that name.
    """
    model = id_of(holder.get("model"))
    return model if isinstance(model, str) else None


def id_of(model: Any) -> Any:
    """Return the name of a model that an agent may have as an object, with its `id`."""
    return model.get("id", model) if isinstance(model, dict) else model


def figure(document: Any, *names: str) -> int:
    """Return the number behind `names`, a path; 0 where there is none, or no sane one."""
    for name in names:
        if not isinstance(document, dict):
            return 0
        document = document.get(name)
    if document is None:
        return 0
    if isinstance(document, float) and document.is_integer():
        document = int(document)
    return sane_tokens(document)


def caps(
    document: Mapping[str, Any], *names: str, within: Path = (), least: int = 1
) -> dict[Path, int]:
    """Return the members `names`, each of which is a positive whole number, by their paths.

    Args:
        document: the object whose members they are.
        names: their names.
        within: the path of the object.
        least: the smallest number that is one.

    Raises:
        BodyInvalid: one is something else.
    """
    found: dict[Path, int] = {}
    for name in names:
        value = document.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BodyInvalid(f"{name} must be a positive whole number.")
        found[(*within, name)] = value
    return found


def batched(entries: object) -> list[Any]:
    """Return the requests of a batch, none where it is no list.

    Raises:
        BodyInvalid: there are too many.
    """
    found = entries if isinstance(entries, list) else []
    if len(found) > _MOST_BATCHED:
        raise BodyInvalid(f"A batch has at most {_MOST_BATCHED} requests.")
    return found


def count_of(document: Mapping[str, Any], *names: str) -> int:
    """Return the largest of the members `names`, 1 where there is none; as `caps`."""
    return max(caps(document, *names).values(), default=1)


def _event(name: str | None, document: Json) -> bytes:
    import json

    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document)}\n\n".encode()
