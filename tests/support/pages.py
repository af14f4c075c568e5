"""A page of documentation, taken apart: its blocks, the commands in them, its links and sentences."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Command:
    """A line `$ ...` of a console block, and what the page says it prints."""

    line: str
    output: tuple[str, ...]

    @property
    def args(self) -> list[str]:
        return shlex.split(self.line)[1:]


@dataclass(frozen=True)
class Page:
    """A Markdown file of the checkout, by its path there."""

    path: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text()

    def blocks(self, language: str) -> list[str]:
        """Return what stands in the fenced blocks of a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    def commands(self, program: str) -> list[Command]:
        """Return every call of a program in the console blocks, top to bottom."""
        commands = []
        for block in self.blocks("console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, *output = part.splitlines()
                if line.split()[0] == program:
                    commands.append(Command(line, tuple(output)))
        return commands

    def links(self) -> list[tuple[str, Path]]:
        """Return the links to files, as they are written and where they lead."""
        targets = re.findall(r"\]\(([^)#]+)\)", self.text)
        return [(to, (ROOT / self.path).parent / to) for to in targets if not to.startswith("https://")]

    def anchors(self) -> set[str]:
        """Return what a link to a heading of this page may name."""
        headings = re.findall(r"^#+ (.*)$", self.text, re.MULTILINE)
        return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def table(self, key: str) -> dict[str, tuple[str, ...]]:
        """Return the rows of the table whose first column is headed `key`: first cell to the others."""
        _, heading, rest = self.text.partition(f"\n| {key} |")
        assert heading, f"{self.path} has no table of {key}"
        rows = [line for line in rest.partition("\n\n")[0].splitlines()[2:] if line.startswith("|")]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
        return {first: tuple(others) for first, *others in cells}


README = Page("README.md")
SEARCH_SPACES = Page("search_spaces/README.md")
REFERENCE = Page("search_spaces/REFERENCE.md")
BENCHMARKS = Page("tests/benchmarks/README.md")
CLUSTER = Page("cluster/README.md")
CONTRIBUTING = Page("CONTRIBUTING.md")
PAGES = (README, SEARCH_SPACES, REFERENCE, BENCHMARKS, CLUSTER, CONTRIBUTING)
