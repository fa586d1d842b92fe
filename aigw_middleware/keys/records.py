"""The records of gateway keys, provider keys and admin tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from .active import read_window


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A gateway key as layers and stores see it; nothing of its token is in it.

    Attributes:
        id: `aigk_` and the public id that stands in the token; safe in logs.
        name: a short name for people.
        description: what the key is for, at most 255 characters.
        metadata: free text, often JSON, at most 4,096 characters.
        endpoint_id: the endpoint that the key is for; None for every endpoint.
        created_at: when it was made, UTC.
        updated_at: when its record last changed, UTC.
        expires_at: from when on it is refused, UTC; None for never.
        last_used: when it last let a request in, UTC, to the second; None for never, and in
            the record that a request finds in its environ.
        disabled: whether it is refused for now.
        redacted: the form of its token that may be shown.
        limits: its limits (`"100/min"`), counted for this key alone.
        models: patterns of the models that it may use; None for all, empty for none.
        networks: the networks that it may be used from; empty for all.
        active: windows of the week in which it is good (`mon-fri 08:00-18:00 Europe/Berlin`, UTC
            where no zone is named); outside all of them it is refused. Empty for always.
    """

    id: str
    name: str = ""
    description: str = ""
    metadata: str = ""
    endpoint_id: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    last_used: datetime | None = None
    disabled: bool = False
    redacted: str = ""
    limits: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    networks: tuple[str, ...] = ()
    active: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Made by hand, a record may have lists; rules are looked up by what cannot change.
        for name in ("limits", "models", "networks", "active"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, tuple):
                values = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, values)
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise ValueError("expires_at: must have a time zone")
        for window in self.active:
            read_window(window)

    def is_live(self, now: datetime) -> bool:
        """Whether the key is good at `now` (an aware datetime).

        That is when it is neither disabled nor expired, and in one of its windows.
        """
        if self.disabled or (self.expires_at is not None and now >= self.expires_at):
            return False
        return not self.active or any(read_window(window).holds(now) for window in self.active)


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """The record of a provider's key; its secret is sealed in the store and not in here.

    Attributes:
        id: `aigpk_` and letters that say nothing.
        provider: whose key it is.
        description: what it is for.
        metadata: free text, often JSON.
        created_at: when it was made, UTC.
        updated_at: when its record last changed, UTC.
        disabled: whether it is left out when requests are forwarded.
        redacted: the form that people may see, at most the last four letters.
    """

    id: str
    provider: str
    description: str = ""
    metadata: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    disabled: bool = False
    redacted: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AdminToken:
    """The record of a token that opens the management API; the token is not in it.

    Attributes:
        id: `aigat_` and the public id that stands in the token; safe in logs.
        name: who it is for.
        role: `read` or `write`.
        created_at: when it was made, UTC.
    """

    id: str
    name: str = ""
    role: str = "read"
    created_at: datetime | None = None
