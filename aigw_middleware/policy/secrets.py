"""`secrets.get('vault', 'name')`: from the environment, a file, or the sealed store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .document import read
from .mistakes import PolicyError

if TYPE_CHECKING:
    from ..store import Store

FILE = "AIGW_VAULT_FILE"


def variable(vault: str, name: str) -> str:
    """Return the environment variable of a secret."""
    return "AIGW_VAULT_" + re.sub(r"[^A-Z0-9]", "_", f"{vault}_{name}".upper())


def stored_as(vault: str, name: str) -> str:
    """Return the name under which a secret stands among the provider keys of a store."""
    return f"vault:{vault}:{name}"


class Vaults:
    """Where secrets are.

    Args:
        store: the store that may have them, sealed.
        variables: the environment; None for the process's.
    """

    def __init__(self, store: Store | None, variables: Mapping[str, str] | None = None) -> None:
        self._store = store
        self._variables = os.environ if variables is None else variables
        self._file: dict[str, dict[str, str]] | None = None
        self.known: set[str] = set()
        """The secrets that were returned."""

    def secret(self, vault: str, name: str) -> str:
        """Return a secret.

        Raises:
            LookupError: it is nowhere; with a message that says where it was looked for.
            ValueError: the file cannot be read.
        """
        found = self._variables.get(variable(vault, name))
        if found is None:
            found = self._in_file().get(vault, {}).get(name)
        if found is None and self._store is not None:
            found = next(iter(self._store.provider_keys.secrets(stored_as(vault, name))), None)
        if found is None:
            raise LookupError(
                f'the secret "{name}" of the vault "{vault}" is nowhere: set '
                f"{variable(vault, name)}, put it in the file of {FILE}, or keep it with "
                f"aigw provider-keys add {stored_as(vault, name)}"
            )
        if not found:
            raise LookupError(f'the secret "{name}" of the vault "{vault}" is empty')
        self.known.add(found)
        return found

    def _in_file(self) -> dict[str, dict[str, str]]:
        """Return what the file holds: a mapping of vaults, each a mapping of names."""
        if self._file is None:
            path = self._variables.get(FILE)
            self._file = {} if not path else _read(path)
        return self._file


def _read(path: str) -> dict[str, dict[str, str]]:
    try:
        document = read(Path(path).read_bytes(), path).plain()
    except OSError as error:
        raise ValueError(f"{FILE}: {path} cannot be read: {error.strerror}") from None
    except PolicyError as error:
        # What a reader says of a place repeats nothing that stands there.
        raise ValueError(f"{FILE}: {error}") from None
    if not isinstance(document, dict) or not all(
        isinstance(names, dict) and all(isinstance(value, str) for value in names.values())
        for names in document.values()
    ):
        raise ValueError(f"{FILE}: {path} must hold a mapping of vaults to names to texts")
    return document
