"""The search: Ray Tune schedules, Optuna samples, hosts train, one ledger records.

The names load on first use: a process that trains needs none of them.
"""

from __future__ import annotations
