"""Gateway keys: the form of their tokens and the records behind them."""

from .records import ApiKey
from .static import StaticKeys
from .token import TOKEN_PATTERN

__all__ = ["TOKEN_PATTERN", "ApiKey", "StaticKeys"]
