"""The command line: a file for each verb, or for a family of small ones. stdout is data, stderr is talk."""

from __future__ import annotations
