"""The functions that expressions may call, beyond those of CEL itself.

Each raises `ValueError` for what it cannot do, without the value in the message; and none makes
a text or a list that is much larger than a request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import random
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

MOST_TEXT = 64 * 1024
MOST_ITEMS = 128

Function = Callable[..., Any]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text was expected")
    return value


def _short(text: str) -> str:
    if len(text) > MOST_TEXT:
        raise ValueError("the text would be longer than 64 KB")
    return text


def _few(items: list[Any]) -> list[Any]:
    if len(items) > MOST_ITEMS:
        raise ValueError(f"the list would have more than {MOST_ITEMS} items")
    return items


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list was expected")
    return value


# --- texts


def _char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(_text(text)):
        raise ValueError("there is no such character")
    return text[index : index + 1]


def _substring(text: str, start: int, end: int | None = None) -> str:
    stop = len(_text(text)) if end is None else end
    if not 0 <= start <= stop <= len(text):
        raise ValueError("there is no such part of the text")
    return text[start:stop]


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    times = _text(text).count(_text(old)) if old else len(text) + 1
    times = times if count < 0 else min(times, count)
    if len(text) + times * max(0, len(_text(new)) - len(old)) > MOST_TEXT:
        raise ValueError("the text would be longer than 64 KB")
    return text.replace(old, new, count)


def _split(text: str, separator: str, count: int = -1) -> list[str]:
    if count == 0:
        return []
    if separator == "":
        return _few(list(_text(text)))
    return _few(_text(text).split(_text(separator), count - 1 if count > 0 else -1))


def _reverse(value: Any) -> Any:
    return value[::-1] if isinstance(value, str | list) else _text(value)


def _is_json(text: str) -> bool:
    try:
        json.loads(_text(text))
    except (ValueError, RecursionError):
        return False
    return True


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(_text(text))
        return bool(parts.scheme and parts.netloc and parts.hostname)
    except ValueError:
        return False


def _decode_json(text: str) -> Any:
    try:
        found = json.loads(_short(_text(text)))
    except (ValueError, RecursionError):
        raise ValueError("the text is no JSON") from None
    bounded(found)
    return found


def bounded(value: Any, most: int = MOST_ITEMS) -> None:
    """Check that no list or map in a value is long: loops go over them.

    Raises:
        ValueError: one is.
    """
    left, count = [value], 0
    while left:
        one = left.pop()
        if not isinstance(one, list | dict):
            continue
        count += len(one)
        if len(one) > most or count > 10 * most:
            raise ValueError(f"a list or map has more than {most} entries")
        left += one.values() if isinstance(one, dict) else one


def _encode_json(value: Any) -> str:
    return _short(json.dumps(value, separators=(",", ":"), default=_as_text))


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else _text(value).encode()


def _decode_base64(value: str) -> str:
    try:
        padded = _text(value) + "=" * (-len(value) % 4)
        return base64.b64decode(padded, validate=True).decode("utf-8", "replace")
    except binascii.Error:
        raise ValueError("the text is no base64") from None


def _encode_base64(value: str | bytes) -> str:
    return base64.b64encode(_bytes(value)).decode()


def _decode_query(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in _few(parse_qsl(_text(text), keep_blank_values=True)):
        found.setdefault(name, []).append(value)
    return found


def _encode_query(value: Mapping[str, Any]) -> str:
    pairs = [
        (name, str(one))
        for name, values in value.items()
        for one in (values if isinstance(values, list) else [values])
    ]
    return _short(urlencode(pairs))


def _parse_url(text: str) -> dict[str, Any]:
    try:
        parts = urlsplit(_text(text))
        port = parts.port
    except ValueError:
        raise ValueError("the text is no URL") from None
    return {
        "scheme": parts.scheme,
        "host": parts.hostname or "",
        "port": port if port is not None else 0,
        "path": parts.path,
        "query": parts.query,
        "fragment": parts.fragment,
    }


# --- lists


def _join(items: list[Any], separator: str = "") -> str:
    return _short(_text(separator).join(_text(item) for item in _list(items)))


def _slice(items: list[Any], start: int, end: int) -> list[Any]:
    if not 0 <= start <= end <= len(_list(items)):
        raise ValueError("there is no such part of the list")
    return items[start:end]


def _flatten(items: list[Any], depth: int = 1) -> list[Any]:
    if depth < 0:
        raise ValueError("a depth is not negative")
    found: list[Any] = []
    for item in _list(items):
        found += _flatten(item, depth - 1) if isinstance(item, list) and depth else [item]
        _few(found)
    return found


def _sort(items: list[Any]) -> list[Any]:
    try:
        return sorted(_list(items))
    except TypeError:
        raise ValueError("the list holds what cannot be compared") from None


def _distinct(items: list[Any]) -> list[Any]:
    found: list[Any] = []
    for item in _few(_list(items)):
        if not any(type(item) is type(one) and item == one for one in found):
            found.append(item)
    return found


def _range(count: int) -> list[int]:
    if not 0 <= count <= MOST_ITEMS:
        raise ValueError(f"a range has 0 to {MOST_ITEMS} items")
    return list(range(count))


# --- addresses


def _in_cidr(address: str, network: str) -> bool:
    """Whether an address is in a network; a bad network is one that does not match."""
    try:
        found = ip_address(_text(address))
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found) in ip_network(_text(network), strict=False)
    except ValueError:
        return False


def _in_cidrs(address: str, networks: list[str]) -> bool:
    return any(_in_cidr(address, network) for network in _list(networks))


def _is_private(address: str) -> bool:
    try:
        return ip_address(_text(address)).is_private
    except ValueError:
        raise ValueError("the text is no address") from None


# --- hashes


def _hash(name: str) -> Function:
    def digest(value: str | bytes, form: str = "hex") -> str:
        data = hashlib.new(name, _bytes(value), usedforsecurity=False).digest()
        return _formed(data, form)

    return digest


def _crc32(value: str | bytes, form: str = "hex") -> str:
    return _formed(zlib.crc32(_bytes(value)).to_bytes(4, "big"), form)


def _formed(data: bytes, form: str) -> str:
    if form == "hex":
        return data.hex()
    if form == "base64":
        return base64.b64encode(data).decode()
    raise ValueError("a hash is written as hex or base64")


# --- time


def _at(part: Callable[[datetime], int], units: Callable[[timedelta], int] | None) -> Function:
    """Return a function of a time, in a zone where one is named, or of a duration."""

    def found(value: Any, zone: str = "UTC") -> int:
        if isinstance(value, timedelta) and units is not None:
            return units(value)
        if not isinstance(value, datetime):
            raise ValueError("a timestamp was expected")
        return part(value.astimezone(_zone(zone)))

    return found


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(_text(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("there is no such time zone") from None


def _int(value: Any) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp())
    if isinstance(value, bool):
        return int(value)
    raise ValueError("this is no number")


def _string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    raise ValueError("this has no text")


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "t", "1", "false", "f", "0"):
        return value.lower() in ("true", "t", "1")
    raise ValueError("this is neither true nor false")


def _random_int(low: int, high: int) -> int:
    if low > high:
        raise ValueError("the first number is above the second")
    return random.randint(low, high)  # noqa: S311  (a chance, not a secret)


def _escape_url(text: Any) -> str:
    return quote(_text(text), safe="")


def _unescape_url(text: Any) -> str:
    return unquote(_text(text))


SIZE = "_size"
"""By which `size` is called, whose own name is the library's."""


def size(value: object) -> int:
    """Return the characters of a text (CEL: its code points), bytes, items or members."""
    if not isinstance(value, str | bytes | list | dict):
        raise ValueError("a text, a list or a map was expected")
    return len(value)


_DIGESTS = {name: _hash(name) for name in ("md5", "sha1", "sha256", "sha512")}

FUNCTIONS: dict[str, Function] = {
    "bool": _bool,
    "int": _int,
    "string": _string,
    "inCidrRange": _in_cidr,
    "inCidrRanges": _in_cidrs,
    "lists.range": _range,
    "strings.quote": lambda text: json.dumps(_text(text), ensure_ascii=False),
    "base64.encode": _encode_base64,
    "base64.decode": _decode_base64,
    "json.encode": _encode_json,
    "json.decode": _decode_json,
    "queryString.encode": _encode_query,
    "queryString.decode": _decode_query,
    "url.escape": _escape_url,
    "url.unescape": _unescape_url,
    "url.parse": _parse_url,
    "basic_auth.encode": lambda user, word: _encode_base64(f"{_text(user)}:{_text(word)}"),
    "rand.double": random.random,
    "rand.int": _random_int,
    **{f"hash.{name}": digest for name, digest in _DIGESTS.items()},
    "hash.crc32": _crc32,
}
"""By the name by which they are called."""

METHODS: dict[str, Function] = {
    "charAt": _char_at,
    "indexOf": lambda text, part, start=0: _text(text).find(_text(part), start),
    "lastIndexOf": lambda text, part: _text(text).rfind(_text(part)),
    "substring": _substring,
    "split": _split,
    "replace": _replace,
    "trim": lambda text: _text(text).strip(),
    "reverse": _reverse,
    "lower": lambda text: _text(text).lower(),
    "upper": lambda text: _short(_text(text).upper()),
    "lowerAscii": lambda text: "".join(c.lower() if c.isascii() else c for c in _text(text)),
    "upperAscii": lambda text: "".join(c.upper() if c.isascii() else c for c in _text(text)),
    "isJson": _is_json,
    "isURL": _is_url,
    "isQueryString": lambda text: "=" in _text(text) and not set(text) & set(" \t\r\n"),
    "decodeJson": _decode_json,
    "encodeJson": _encode_json,
    "decodeBase64": _decode_base64,
    "encodeBase64": _encode_base64,
    "decodeQueryString": _decode_query,
    "encodeQueryString": _encode_query,
    "escapeUrl": _escape_url,
    "unescapeUrl": _unescape_url,
    "parseUrl": _parse_url,
    "join": _join,
    "slice": _slice,
    "flatten": _flatten,
    "sort": _sort,
    "distinct": _distinct,
    "isPrivateIp": _is_private,
    **_DIGESTS,
    "crc32": _crc32,
    # As in CEL's standard: months and days of months and years from 0, but `getDate` from 1.
    "getFullYear": _at(lambda t: t.year, None),
    "getMonth": _at(lambda t: t.month - 1, None),
    "getDate": _at(lambda t: t.day, None),
    "getDayOfMonth": _at(lambda t: t.day - 1, None),
    "getDayOfWeek": _at(lambda t: t.isoweekday() % 7, None),
    "getDayOfYear": _at(lambda t: t.timetuple().tm_yday - 1, None),
    "getHours": _at(lambda t: t.hour, lambda d: int(d.total_seconds() // 3600)),
    "getMinutes": _at(lambda t: t.minute, lambda d: int(d.total_seconds() // 60)),
    "getSeconds": _at(lambda t: t.second, lambda d: int(d.total_seconds())),
    "getMilliseconds": _at(
        lambda t: t.microsecond // 1000, lambda d: d // timedelta(milliseconds=1)
    ),
}
"""By the name behind the dot; a text, a list or a time comes first."""

NATIVE_FUNCTIONS = frozenset(
    {"size", "int", "uint", "double", "string", "bytes", "bool", "timestamp", "duration", "has",
     "matches", "contains", "startsWith", "endsWith", "dyn", "type"}
)  # fmt: skip
NATIVE_METHODS = frozenset({"size", "contains", "startsWith", "endsWith", "matches"})
MACROS = frozenset({"all", "exists", "exists_one", "filter", "map"})

OF_REQUEST = frozenset(
    {"hasReqHeader", "getReqHeader", "hasReqCookie", "getReqCookie", "hasQueryParam",
     "getQueryParam", "hasResHeader", "getResHeader", "hasResCookie", "getResCookie"}
)  # fmt: skip
"""Functions that look into the request or its answer."""

UNSUPPORTED = frozenset(
    {"format", "sortBy", "crc64", "xxhash64", "hash.crc64", "hash.xxhash64", "randomize",
     "inRegion", "inCountryCode", "underCost", "get", "getModel", "getMetadata", "onlyAuthors",
     "ignoreAuthors"}
)  # fmt: skip
"""What ngrok has and this does not."""
