"""`promotion.notify:`, who is notified of a promotion."""

from __future__ import annotations

import re
import urllib.parse

from loraxs_search.records import Notification
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import KeyPath
from loraxs_search.search_space._reading import read_section
from loraxs_search.search_space._sections import NotifySection

_PATH: KeyPath = ("promotion", "notify")
_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")


def read_notification(document: Document, given: object) -> Notification | None:
    """Read the section, or an address alone; a wrong one is not shown, for there may be a secret in it."""
    section = read_section(document, _PATH, NotifySection, {"url": given} if isinstance(given, str) else given)
    if section is None:
        return None
    if section.url is None and section.command is None:
        document.faults.add(_PATH, "must have a url, a command, or both, but has neither.")
    if section.url is not None and not _is_address(section.url):
        law = "must be an address, http(s)://SERVER/..., or $NAME for one in the environment"
        document.faults.add((*_PATH, "url"), f"{law}, but got another text of {len(section.url)} characters.")
    return Notification(section.url or "", section.command or ())


def _is_address(url: str) -> bool:
    if _VARIABLE.fullmatch(url):
        return True
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not _odd(url)
    except ValueError:  # of a port, or brackets
        return False


def _odd(url: str) -> bool:
    return not url.isprintable() or " " in url
