"""The tables of a page, as its reader sees them."""

from __future__ import annotations

import html
import re


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """Return the rows of a page's tables below their headings, by caption."""
    tables = re.findall(r"<table>\s*<caption><span>(.*?)</span>.*?(<tr.*?)</table>", page, re.DOTALL)
    rows = {html.unescape(caption): re.findall(r"<tr.*?</tr>", body, re.DOTALL)[1:] for caption, body in tables}

    def cells(row: str) -> list[str]:
        found = re.findall(r"<t[dh]\b.*?>(.*?)</t[dh]>", row, re.DOTALL)
        return [html.unescape(re.sub("<.*?>", "", cell)) for cell in found]

    return {caption: [cells(row) for row in body] for caption, body in rows.items()}
