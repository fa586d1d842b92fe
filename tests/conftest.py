"""Settings of every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Deadlines of single examples say more of the machine's other work than of the code.
settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile("long", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
