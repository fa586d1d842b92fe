"""A provider as an option: a row of the catalogue, or an address of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from urllib.parse import urlencode

from .._options import several
from ..dialects import DIALECTS
from ..forwarding.url import BaseURL
from .catalogue import BEARER, CATALOGUE, CUSTOM_HEADERS, NAMES, Surface


class Provider:
    """A provider that requests may be forwarded to.

    ::

        Provider("openai", api_keys=["sk-..."])
        Provider("mine", base_url="http://10.0.0.7:8000/v1", dialect="openai", models=["llama-3"])

    Args:
        name: a name of the catalogue, or one of your own, which then needs a `base_url`.
        base_url: what stands for the client's `/v1` (Gemini: `/v1beta` too); with a name of the
            catalogue it takes the place of that provider's address.
        dialect: what a provider of your own speaks: `openai` (the default), `anthropic` or
            `gemini`.
        api_keys: its keys in order of preference. Without any, those of the forwarder's store
            are used, the newest first, then the one in the environment variable of the vendor's
            SDK (`OPENAI_API_KEY`, ...); a provider of your own is asked without a key.
        models: the models that it serves, those too that a request has it ask by itself (an
            advisor, a tool's); None for any.
        others: True serves models that it doesn't list as well, where no provider lists them.
        aliases: further names by which a model may name it (`alias/model`).
        weight: how often it is asked first where the forwarder's strategy is `weighted`.
        query: query parameters that every request to it gets, `{"api-version": "2024-10-21"}`.
        needs_key: False asks it without a key where none is known, True leaves it out then; by
            default True for a provider of the catalogue at its own address.

    Raises:
        ValueError: an option is wrong; a key is never repeated in the message.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        dialect: str | None = None,
        api_keys: Iterable[str] = (),
        models: Iterable[str] | None = None,
        others: bool = False,
        aliases: Iterable[str] = (),
        weight: float = 1,
        query: Mapping[str, str] | None = None,
        needs_key: bool | None = None,
    ) -> None:
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise ValueError(f"name: {name!r} is no name of a provider")
        known = NAMES.get(name.lower())
        self.name = known or name
        self._surfaces = self._known(known, dialect) if known else self._custom(base_url, dialect)
        url = base_url if base_url is not None else CATALOGUE[self.name].base_url
        if not isinstance(url, str):
            raise ValueError("base_url: not an http or https URL with a host")
        if not url:
            raise ValueError(f"base_url: {self.name} has an address for each customer; give yours")
        self._bases = {
            of: BaseURL(url.rstrip("/") + surface.path, option="base_url")
            for of, surface in self._surfaces.items()
        }
        keys = several("api_keys", api_keys)
        if not all(_can_be_sent(key) for key in keys):
            raise ValueError("api_keys: a key is empty, or cannot be sent in a header")
        self._keys = tuple(keys)
        by_default = known is not None and base_url is None and bool(CATALOGUE[known].key_variables)
        self._needs_key = by_default if needs_key is None else needs_key
        self.models = None if models is None else tuple(_texts("models", models))
        """The models that it serves, as they were given; None for any."""
        self._others = bool(others)
        # As they are asked for: Google's lists have `models/` before each.
        names = [name.removeprefix("models/") for name in self.models or ()]
        self._listed = frozenset(map(str.lower, (*(self.models or ()), *names)))
        self._called = {
            self.name.lower(),
            name.lower(),
            *map(str.lower, _texts("aliases", aliases)),
        }
        self._is_own = known is None or base_url is not None
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
            raise ValueError(f"weight: {weight!r} is no number above 0")
        self.weight = float(weight)
        """How often it is asked first, against others."""
        self.query = _query(query)
        """What stands in every query that it gets; empty for nothing."""

    @staticmethod
    def _known(name: str, dialect: str | None) -> Mapping[str, Surface]:
        surfaces = CATALOGUE[name].surfaces
        if dialect is None:
            return surfaces
        if not isinstance(dialect, str) or dialect not in surfaces:
            raise ValueError(f"dialect: {name} does not speak {dialect!r}")
        return {dialect: surfaces[dialect]}

    def _custom(self, base_url: str | None, dialect: str | None) -> Mapping[str, Surface]:
        if base_url is None:
            raise ValueError(
                f"name: {self.name!r} is not in the catalogue ({', '.join(CATALOGUE)}); "
                "a provider of your own needs base_url"
            )
        dialect = dialect or "openai"
        if not isinstance(dialect, str) or dialect not in DIALECTS:
            raise ValueError(f"dialect: {dialect!r} is none of {', '.join(DIALECTS)}")
        return {dialect: Surface("", CUSTOM_HEADERS[dialect])}

    def __repr__(self) -> str:
        return f"<Provider {self.name}, {len(self._keys)} keys given>"

    @property
    def dialects(self) -> tuple[str, ...]:
        """The names of the dialects that it speaks, the native one first."""
        return tuple(self._surfaces)

    @property
    def needs_key(self) -> bool:
        """Whether it is left out where no key is known for it."""
        return self._needs_key

    def base(self, dialect: str) -> BaseURL:
        """Return where it speaks `dialect`."""
        return self._bases[dialect]

    @property
    def given_keys(self) -> tuple[str, ...]:
        """The keys that were given, in order of preference."""
        return self._keys

    def environment_keys(self) -> tuple[str, ...]:
        """Return the key in the environment variable of its SDK, if there is one."""
        if self.name not in CATALOGUE:
            return ()
        values = (os.environ.get(name) for name in CATALOGUE[self.name].key_variables)
        return tuple(value for value in values if value and _can_be_sent(value))[:1]

    def credential(self, dialect: str, key: str) -> tuple[str, str]:
        """Return the header that carries `key`, as `(name, value)`."""
        return credential(self._surfaces[dialect].header, key)

    def lists(self, model: str | None) -> bool:
        """Whether its `models` name `model`."""
        return model is not None and model.lower() in self._listed

    @property
    def serves_any(self) -> bool:
        """Whether it may be asked for models that it does not list."""
        return self.models is None or self._others

    def is_called(self, name: str) -> bool:
        """Whether `name` stands for it before a model's name."""
        return name.lower() in self._called or NAMES.get(name.lower()) == self.name

    def is_like(self, other: Provider) -> bool:
        """Whether it can be taken to have the models of `other`, where neither lists any."""
        return self.name == other.name or (self._is_own and other._is_own)


def credential(header: str, key: str) -> tuple[str, str]:
    """Return the header with `key` in it, in the form that the header asks for."""
    return (header, f"Bearer {key}") if header == BEARER else (header, key)


def _texts(option: str, values: Iterable[str]) -> list[str]:
    names = several(option, values)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{option}: must be names")
    return names


def _query(query: Mapping[str, str] | None) -> str:
    if query is None:
        return ""
    if not isinstance(query, Mapping) or not all(
        isinstance(text, str) for pair in query.items() for text in pair
    ):
        raise ValueError("query: must be a mapping of texts")
    return urlencode(query)


def _can_be_sent(key: object) -> bool:
    return (
        isinstance(key, str)
        and bool(key)
        and key.isascii()
        and key.isprintable()
        and " " not in key
    )
