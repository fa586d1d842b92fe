"""Traffic Policy documents: read, checked, and built into a stack."""

from .mistakes import Mistake, PolicyError
from .policy import TrafficPolicy

__all__ = ["Mistake", "PolicyError", "TrafficPolicy"]
