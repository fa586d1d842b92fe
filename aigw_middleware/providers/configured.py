"""The providers that environment variables describe."""

from __future__ import annotations

from collections.abc import Mapping

from .catalogue import CATALOGUE
from .provider import Provider


def configured_providers(variables: Mapping[str, str]) -> list[Provider]:
    """Return the providers of the catalogue, with the keys and addresses in `variables`.

    Those without a key there are served as soon as the store has one. Left out are those that are
    asked without a key, and those at an address that nobody has told.
    """
    providers = []
    for name, entry in CATALOGUE.items():
        found = (variables.get(variable, "").strip() for variable in entry.key_variables)
        url = configured_base(name, variables)
        if not entry.key_variables or not (url or entry.base_url):
            continue
        providers.append(
            Provider(name, api_keys=[key for key in found if key][:1], base_url=url, needs_key=True)
        )
    return providers


def configured_base(name: str, variables: Mapping[str, str]) -> str | None:
    """Return the base URL that a provider's variable (`OPENAI_BASE_URL`, ...) names; else None."""
    entry = CATALOGUE[name]
    base = variables.get(entry.base_variable) if entry.base_variable else None
    return base.rstrip("/") + entry.base_suffix if base else None
