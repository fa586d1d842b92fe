"""A stand-in provider, for the demo and for tests of your own.

::

    from aigw_middleware.testing import StandInProvider, serving

    provider = StandInProvider()
    with serving(provider) as url:
        app = UpstreamForwarder(upstream=Provider("openai", base_url=f"{url}/v1"))
        ...
    assert provider.requests[-1].headers["authorization"] == "Bearer ..."
"""

from .server import serving
from .stand_in import Received, StandInProvider

__all__ = ["Received", "StandInProvider", "serving"]
