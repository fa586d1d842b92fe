"""What a request has used: the figures, and the journal that keeps them over a crash."""

from .figures import Usage, figures_of

__all__ = ["Usage", "figures_of"]
