"""Which model a request means: aliases, and providers that stand before the model's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .._options import several
from ..providers.provider import Provider

_NAME = re.compile(r"[A-Za-z0-9._:/@+-]{1,256}").fullmatch


class Named(NamedTuple):
    """What a model's name means.

    Attributes:
        model: the name that the provider is asked by.
        provider: the provider that stands before it; None where any will do.
    """

    model: str
    provider: str | None


Aliases = Mapping[str, tuple[str, ...]]
"""From a name in lower case to the models that are asked for, the preferred one first."""


def read_aliases(aliases: Mapping[str, str | Sequence[str]] | None) -> Aliases:
    """Return aliases by their name in lower case.

    Raises:
        ValueError: one is no model's name, or stands for another alias.
    """
    if aliases is None:
        return {}
    if not isinstance(aliases, Mapping):
        raise ValueError(f"aliases: must be a mapping, not {type(aliases).__name__}")
    found: dict[str, tuple[str, ...]] = {}
    for name, models in aliases.items():
        targets = tuple(several("aliases", models))
        for text in (name, *targets):
            if not isinstance(text, str) or not _NAME(text):
                raise ValueError(f"aliases: {text!r} is no name of a model")
        if not targets:
            raise ValueError(f"aliases: {name!r} stands for no model")
        found[name.lower()] = targets
    for name, targets in found.items():
        if any(model.lower() in found and model.lower() != name for model in targets):
            raise ValueError(f"aliases: {name!r} stands for another alias")
    return found


def resolve(model: str, providers: Sequence[Provider], aliases: Aliases) -> list[Named]:
    """Return what a model's name means, in order of preference: several where an alias says so.

    An alias may have a provider before it, where that lists what the alias stands for and has no
    model of the alias's name.
    """
    if model.lower() in aliases:
        return [_resolved(name, providers) for name in aliases[model.lower()]]
    named = _resolved(model, providers)
    provider = next((one for one in providers if one.name == named.provider), None)
    if provider is None or provider.models is None or provider.lists(named.model):
        return [named]
    targets = [_resolved(name, providers) for name in aliases.get(named.model.lower(), ())]
    own = [one for one in targets if one.provider == provider.name and provider.lists(one.model)]
    return own or [named]


def _resolved(model: str, providers: Sequence[Provider]) -> Named:
    """Return what one name means.

    The part before the first `/` or `:` is a provider only where one of that name or alias is
    configured, and the whole name is not in a provider's own list of models.
    """
    if any(provider.lists(model) for provider in providers):
        return Named(model, None)
    match = re.match(r"([^/:]+)[/:](.+)", model)
    if match is not None:
        for provider in providers:
            if provider.is_called(match[1]):
                return Named(match[2], provider.name)
    return Named(model, None)
