"""How many examples Hypothesis tries."""

from __future__ import annotations

import os

from hypothesis import settings

few = settings(max_examples=200 if "LORAXS_EXPLORE" in os.environ else 15, deadline=None)
