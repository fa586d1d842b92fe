"""Providers: where they are, how they want their key, and which dialects they speak."""

from .catalogue import CATALOGUE
from .provider import Provider

__all__ = ["CATALOGUE", "Provider"]
