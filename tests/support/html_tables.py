"""The tables of a page, as its reader sees them."""

from __future__ import annotations

from html.parser import HTMLParser


class _Tables(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.by_caption: dict[str, list[list[str]]] = {}
        self._caption, self._into = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._into = tag
        if tag == "tr":
            self.by_caption[self._caption].append([])
        elif tag in ("td", "th"):
            self.by_caption[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._into = ""

    def handle_data(self, data: str) -> None:
        if self._into == "span" and self.get_starttag_text() == "<span>":
            self._caption = data
            self.by_caption[data] = []
        elif self._into in ("td", "th"):
            self.by_caption[self._caption][-1][-1] += data


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """Return the rows of a page's tables below their headings, by caption."""
    tables = _Tables()
    tables.feed(page)
    return {caption: rows[1:] for caption, rows in tables.by_caption.items()}
