"""What the benchmarks share: a command line that prints the script's own manual, and a file of all numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the script's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write all numbers here")
    return made


def keep_numbers(arguments: argparse.Namespace, found: Any) -> None:
    """Write the numbers where `--json` says."""
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
