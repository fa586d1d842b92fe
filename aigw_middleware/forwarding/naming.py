"""Which model a request means: aliases, and providers that stand before the model's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..providers.catalogue import NAMES
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


def read_aliases(aliases: Mapping[str, str] | None) -> dict[str, str]:
    """Return aliases by their name in lower case.

    Raises:
        ValueError: one is no model's name, or stands for another alias.
    """
    if aliases is None:
        return {}
    if not isinstance(aliases, Mapping):
        raise ValueError(f"aliases: must be a mapping, not {type(aliases).__name__}")
    found: dict[str, str] = {}
    for name, model in aliases.items():
        for text in (name, model):
            if not isinstance(text, str) or not _NAME(text):
                raise ValueError(f"aliases: {text!r} is no name of a model")
        found[name.lower()] = model
    for name, model in found.items():
        if model.lower() in found and model.lower() != name:
            raise ValueError(f"aliases: {name!r} stands for another alias")
    return found


def resolve(model: str, providers: Sequence[Provider], aliases: Mapping[str, str]) -> Named:
    """Return what a model's name means.

    The part before the first `/` or `:` is a provider only where one of that name or alias is
    configured, and the whole name is not in a provider's own list of models.
    """
    model = aliases.get(model.lower(), model)
    if any(provider.lists(model) for provider in providers):
        return Named(model, None)
    match = re.match(r"([^/:]+)[/:](.+)", model)
    if match is not None:
        name = NAMES.get(match[1].lower(), match[1])
        for provider in providers:
            if provider.name.lower() == name.lower():
                return Named(match[2], provider.name)
    return Named(model, None)
