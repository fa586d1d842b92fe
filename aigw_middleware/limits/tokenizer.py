"""Count a body's tokens as OpenAI's models do (extra `tokenizer`).

tiktoken fetches its tables from the network when it has none. A gateway calls nobody unasked, so
only tables count that are there already, in the directory that `TIKTOKEN_CACHE_DIR` names under
the names that tiktoken itself gives them there.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from hashlib import sha1, sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiktoken import Encoding

    from ..body import Body

logger = logging.getLogger(__name__)

DIRECTORY = "TIKTOKEN_CACHE_DIR"
MOST = 256 * 1024
"""Bytes of a body that are counted: a longer one would keep all others waiting for too long."""
_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_DIGESTS = {
    "r50k_base": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "p50k_base": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
"""SHA-256 of the tables, as tiktoken has them: it would fetch one that has another anew."""
_TABLES = {"o200k_harmony": "o200k_base", "p50k_edit": "p50k_base"}
"""Encodings that share the table of another one."""
_PIECE = 64 * 1024
"""Letters that are counted at a time: tiktoken's matching has a stack that a long run exhausts."""


def load() -> None:
    """Read the table of OpenAI's present models, where it is there: a fifth of a second, once."""
    _encoding_for("gpt-4o")


def count(model: str | None, body: Body) -> int | None:
    """Return the tokens of a JSON body for a model of OpenAI's; None where it cannot be told.

    What the model reads has fewer: the body's quotes, names and escapes are counted as they are.

    Args:
        model: the model's name, perhaps behind a provider's.
        body: the body, which keeps the count.
    """
    if model is None or body.size > MOST:
        return None
    encoding = _encoding_for(model.rpartition("/")[2].lower())
    if encoding is None:
        return None
    known = body.counted.get(encoding.name)
    if known is None:
        text = body.read().decode("utf-8", "replace")
        pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
        known = sum(len(encoding.encode_ordinary(piece)) for piece in pieces)
        body.counted[encoding.name] = known
    return known


@lru_cache(maxsize=256)
def _encoding_for(model: str) -> Encoding | None:
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return None  # before tiktoken is imported, which takes megabytes
    try:
        from tiktoken.model import encoding_name_for_model

        name = encoding_name_for_model(model)
    except (ModuleNotFoundError, KeyError):  # no model of OpenAI's
        return None
    return _encoding(name, directory)


@lru_cache(maxsize=16)
def _encoding(name: str, directory: str) -> Encoding | None:
    from tiktoken import get_encoding

    table = _TABLES.get(name, name)
    address = _ADDRESS.format(table)
    path = Path(directory, sha1(address.encode(), usedforsecurity=False).hexdigest())
    try:
        if sha256(path.read_bytes()).hexdigest() != _DIGESTS.get(table):
            raise ValueError("it is another one, or damaged")
        return get_encoding(name)
    except (OSError, ValueError) as error:
        logger.warning(
            "no table %s in %s (%s): tokens are bounded by bytes", name, DIRECTORY, error
        )
        return None
