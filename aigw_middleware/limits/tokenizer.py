"""Count a body's tokens as OpenAI's models do (extra `tokenizer`).

tiktoken fetches its tables from the network when it has none. A gateway calls nobody unasked, so
only tables count that are there already, in the directory that `TIKTOKEN_CACHE_DIR` names under
the names that tiktoken itself gives them there.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from hashlib import sha1
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

logger = logging.getLogger(__name__)

DIRECTORY = "TIKTOKEN_CACHE_DIR"
_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_TABLES = {"o200k_harmony": "o200k_base"}
"""Encodings that share the table of another one."""
_PIECE = 64 * 1024
"""Letters that are counted at a time: tiktoken's matching has a stack that a long run exhausts."""


def load() -> None:
    """Read the table of OpenAI's present models, where it is there: a fifth of a second, once."""
    _encoding("o200k_base")


def count(model: str | None, data: bytes) -> int | None:
    """Return the tokens of a JSON body for a model of OpenAI's; None where it cannot be told.

    What the model reads has fewer: the body's quotes, names and escapes are counted as they are.

    Args:
        model: the model's name, perhaps behind a provider's.
        data: the body.
    """
    encoding = None if model is None else _encoding_for(model.rpartition("/")[2].lower())
    if encoding is None:
        return None
    text = data.decode("utf-8", "replace")
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return sum(len(encoding.encode_ordinary(piece)) for piece in pieces)


@lru_cache(maxsize=256)
def _encoding_for(model: str) -> Encoding | None:
    try:
        from tiktoken.model import encoding_name_for_model
    except ModuleNotFoundError:
        return None
    try:
        return _encoding(encoding_name_for_model(model))
    except KeyError:  # no model of OpenAI's
        return None


@lru_cache(maxsize=16)
def _encoding(name: str) -> Encoding | None:
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return None
    address = _ADDRESS.format(_TABLES.get(name, name))
    table = os.path.join(directory, sha1(address.encode(), usedforsecurity=False).hexdigest())
    if not os.path.isfile(table):
        logger.warning("%s has no table %s: tokens are bounded by bytes", DIRECTORY, name)
        return None
    try:
        from tiktoken import get_encoding
    except ModuleNotFoundError:
        return None
    return get_encoding(name)
