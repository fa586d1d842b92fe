"""Key sets of identity providers, and the claims of a token that one of their keys has signed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from .._addresses import is_loopback
from .._forks import in_child
from .._options import several
from ..errors import StoreUnavailable, UpstreamError

if TYPE_CHECKING:
    from ..forwarding.url import BaseURL

MOST_BYTES = 1024 * 1024
MOST_KEYS = 100
FETCH_SECONDS = 5.0
AGAIN_SECONDS = 30.0
"""The shortest time between two fetches."""
FRESH_SECONDS = 3600.0
"""How long a set is used without looking whether there is another."""
GOOD_SECONDS = 24 * 3600.0
"""How long a set is used while another cannot be fetched."""

_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",), "oct": ("HS",)}


class Key(NamedTuple):
    """A key that verifies signatures.

    Attributes:
        id: its `kid`; None for none.
        families: the first letters of the algorithms that it is for.
        algorithm: the only one that it is for; None where its set does not say.
        key: what PyJWT takes.
    """

    id: str | None
    families: tuple[str, ...]
    algorithm: str | None
    key: Any

    def is_for(self, algorithm: str) -> bool:
        """Whether it may verify a signature of `algorithm`."""
        if self.algorithm is not None and self.algorithm != algorithm:
            return False
        return algorithm.startswith(self.families)


class KeySet(Protocol):
    """Where the key of a token is looked up."""

    def find(self, id_: str | None) -> Sequence[Key]:
        """Return the keys that may have signed a token with `kid` `id_`.

        Raises:
            StoreUnavailable: it cannot be told.
        """


class StaticKeySet:
    """Keys that were given.

    Args:
        keys: a JWKS as a dict, or public keys in PEM.

    Raises:
        ValueError: one cannot be read, or there is none.
    """

    def __init__(self, keys: Mapping[str, Any] | str | Iterable[str]) -> None:
        if isinstance(keys, Mapping):
            self._keys = read_jwks(keys)
        else:
            self._keys = [_pem(text) for text in several("keys", keys)]
        if not self._keys:
            raise ValueError("keys: there is no key in it that verifies signatures")

    def find(self, id_: str | None) -> Sequence[Key]:
        """Return the keys of that id, or all of them where either side has no id."""
        return _matching(self._keys, id_)


class RemoteKeySet:
    """The keys at an address of the issuer's.

    Args:
        url: https, or http on loopback.
        clock: returns seconds that never step back; for tests.

    Raises:
        ValueError: it is no such URL.
    """

    def __init__(self, url: object, *, clock: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is None or not parts.hostname or "@" in parts.netloc:
            raise ValueError("jwks_url: must be an https URL without a user")
        at_home = parts.hostname == "localhost" or is_loopback(parts.hostname)
        if parts.scheme != "https" and not (parts.scheme == "http" and at_home):
            raise ValueError("jwks_url: must be https; http will do on loopback only")
        self._host = parts.hostname
        self._base, self._target = _address(str(url))
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched: float | None = None
        self._tried: float | None = None
        self._new_lock()
        in_child(self._new_lock)

    def _new_lock(self) -> None:
        self._lock = Lock()

    def find(self, id_: str | None) -> Sequence[Key]:
        """Return the keys of that id; a set that does not have it is fetched anew, rarely."""
        found = _matching(self._keys, id_)
        now = self._clock()
        age = None if self._fetched is None else now - self._fetched
        if found and age is not None and age < FRESH_SECONDS:
            return found
        if self._may_try(now):
            self._fetch_once(now, wait=not self._keys)
            found = _matching(self._keys, id_)
        if self._fetched is None or self._clock() - self._fetched >= GOOD_SECONDS:
            raise StoreUnavailable(f"the key set at {self._host} is out of reach")
        return found

    def _may_try(self, now: float) -> bool:
        return self._tried is None or now - self._tried >= AGAIN_SECONDS

    def _fetch_once(self, now: float, *, wait: bool) -> None:
        """Fetch, unless another thread does; without any keys wait for what it gets."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            if not self._may_try(now):
                return
            self._tried = now
            keys = _fetch(self._base, self._target)
            if keys is not None:
                self._keys, self._fetched = keys, self._clock()
        finally:
            self._lock.release()


class SeveralKeySets:
    """Several key sets, looked into in their order.

    Args:
        sets: the key sets.
    """

    def __init__(self, sets: Sequence[KeySet]) -> None:
        self._sets = tuple(sets)

    def find(self, id_: str | None) -> Sequence[Key]:
        """Return the keys that may have signed a token: of the first set that has any.

        Raises:
            StoreUnavailable: no set has any, and one could not be had.
        """
        failed: StoreUnavailable | None = None
        for keys in self._sets:
            try:
                found = keys.find(id_)
            except StoreUnavailable as error:
                failed = error
                continue
            if found and id_ is not None:
                return found
            if found:
                return [key for one in self._sets for key in _had(one, id_)]
        if failed is not None:
            raise failed
        return []


def _had(keys: KeySet, id_: str | None) -> Sequence[Key]:
    try:
        return keys.find(id_)
    except StoreUnavailable:
        return []


def _address(url: str) -> tuple[BaseURL, str]:
    """Return where a URL leads, and what is asked for there.

    Raises:
        ValueError: it leads nowhere.
    """
    from werkzeug.urls import iri_to_uri

    from ..forwarding.url import BaseURL

    parts = urlsplit(iri_to_uri(url))
    base = BaseURL(f"{parts.scheme}://{parts.netloc}", option="jwks_url")
    return base, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _fetch(base: BaseURL, target: str) -> list[Key] | None:
    """Return the keys that are there, None where they cannot be had in time or read."""
    # With the forwarder's own client, whose deadline holds however slowly the bytes come.
    from ..forwarding.codings import IDENTITY
    from ..forwarding.reading import read_whole
    from ..forwarding.transport import Request, shared_transport

    deadline = time.monotonic() + FETCH_SECONDS
    headers = [("Accept", "application/json"), ("User-Agent", "aigw-middleware"), IDENTITY]
    request = Request("GET", base, target, headers, (), 0)
    try:
        data = read_whole(request, shared_transport(), deadline, most=MOST_BYTES)
        return read_jwks(json.loads(data)) or None
    except (UpstreamError, ValueError, RecursionError):
        return None


def read_jwks(document: object) -> list[Key]:
    """Return the keys of a set that verify signatures; others in it are passed over (RFC 7517 §5).

    Raises:
        ValueError: it is no set.
    """
    entries = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("keys: a key set has a list of keys")
    found = [_jwk(entry) for entry in entries[:MOST_KEYS]]
    return [key for key in found if key is not None]


def _jwk(entry: object) -> Key | None:
    jwt = _pyjwt()
    if not isinstance(entry, Mapping) or entry.get("use", "sig") != "sig":
        return None
    families = _FAMILIES.get(str(entry.get("kty")))
    if families is None:
        return None
    public = {name: value for name, value in entry.items() if name not in _PRIVATE}
    if entry.get("kty") == "oct":
        public = dict(entry)
    try:
        made = jwt.PyJWK.from_dict(public)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    id_, algorithm = entry.get("kid"), entry.get("alg")
    return Key(
        id_ if isinstance(id_, str) else None,
        families,
        algorithm if isinstance(algorithm, str) else None,
        made.key,
    )


_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})


def _pem(text: object) -> Key:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(text.encode())  # type: ignore[attr-defined]
    except (ValueError, TypeError, AttributeError):
        raise ValueError("keys: a text in it is no public key in PEM") from None
    for kind, family in (
        (rsa.RSAPublicKey, "RSA"),
        (ec.EllipticCurvePublicKey, "EC"),
        (ed25519.Ed25519PublicKey, "OKP"),
        (ed448.Ed448PublicKey, "OKP"),
    ):
        if isinstance(key, kind):
            return Key(None, _FAMILIES[family], None, key)
    raise ValueError("keys: a key in it is of a kind that signs no token")


def _matching(keys: Sequence[Key], id_: str | None) -> list[Key]:
    """Return the keys that may be meant: by id where both sides have one."""
    return [key for key in keys if key.id is None or id_ is None or key.id == id_]


_OPTIONS: Any = {"require": ["exp", "iss", "aud"]}
_ANY_AUDIENCE: Any = {"require": ["exp", "iss"], "verify_aud": False}


def verified_claims(
    token: str,
    keys: KeySet,
    *,
    algorithms: Sequence[str],
    issuers: Sequence[str],
    audiences: Sequence[str] | None,
    leeway: float,
) -> dict[str, Any] | None:
    """Return the claims of a token that is good, None for any other.

    Raises:
        StoreUnavailable: no key set can be had.
    """
    jwt = _pyjwt()
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    algorithm, id_ = header.get("alg"), header.get("kid")
    # What must be understood is not: RFC 7515 §4.1.11.
    if algorithm not in algorithms or "crit" in header or header.get("b64") is False:
        return None
    for key in keys.find(id_ if isinstance(id_, str) else None):
        if not key.is_for(algorithm):
            continue
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=None if audiences is None else list(audiences),
                leeway=leeway,
                options=_ANY_AUDIENCE if audiences is None else _OPTIONS,
            )
        except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
            continue  # another key of the set may have signed it, or be one for that curve
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return claims if claims.get("iss") in issuers else None
    return None


def _pyjwt() -> Any:
    try:
        import jwt
    except ModuleNotFoundError:
        raise ValueError("keys: JWTAuth needs pip install 'aigw-middleware[jwt]'") from None
    return jwt
