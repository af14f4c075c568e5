"""Trial hosts: the frozen base shared by many trials.

The names load on first use: how many trials fit a device is known without PEFT.
"""

from __future__ import annotations
