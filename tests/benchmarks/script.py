"""What the benchmarks share: a command line that prints the script's own manual, a file of all numbers, intervals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the script's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write all numbers here")
    return made


def keep_numbers(arguments: argparse.Namespace, found: Any) -> None:
    """Write the numbers where `--json` says."""
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


def half_interval(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Return half of the 95 % interval of a mean, by Student's t."""
    from scipy.stats import t as student

    return float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
