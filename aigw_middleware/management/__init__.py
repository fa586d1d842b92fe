"""The REST API by which keys are managed."""

from .api import ManagementAPI

__all__ = ["ManagementAPI"]
