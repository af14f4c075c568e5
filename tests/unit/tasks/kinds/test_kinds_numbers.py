"""Equal formulas, in bounded time, in any thread."""

from __future__ import annotations

import threading

import pytest

from loraxs_search.errors import LoraxsError
from loraxs_search.tasks.kinds import _answers as _numbers
from loraxs_search.tasks.kinds._answers import equal_formulas


@pytest.mark.parametrize(
    ("reference", "prediction", "equal"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("\\$36", "36", True),
        ("36", "$36", True),
        ("1 1/2", "11/2", False),
        ("1 1/2", "3/2", True),
        ("1 1/2", "1 2/3", False),
        ("-2 1/3", "-7/3", True),
        ("3 500", "3500", True),
        ("2 3", "5", False),
        ("2 3", "23", False),
        ("2.000.000", "3.000.000", False),
        ("1e5", "5e1", False),
        ("1.5e-3", "0.0015", True),
        ("2e^3", "e^3 * 2", True),
        ("\\frac 1 2", "0.5", True),
        ("x y", "xy", True),
        ("p - q", "q - p", False),
        ("{", "}", False),
        ("5", "6" * 2000, False),
    ],
)
def test_what_math_verify_holds_equal_is_equal(reference, prediction, equal):
    assert equal_formulas(reference, prediction) is equal


def test_a_formula_that_never_ends_is_unequal_and_the_next_is_compared():
    assert equal_formulas("10^{10^{10}}", "5") is False
    assert equal_formulas("2/4", "0.50") is True


def test_threads_may_compare():
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(equal_formulas(f"{n}/2", f"{n / 2}"))) for n in (1, 3, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 3


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text("raise ImportError('no module named math_verify')")
    monkeypatch.setattr(_numbers, "_WORKER", broken)
    workers = _numbers._Workers()
    with pytest.raises(LoraxsError, match="no module named math_verify") as error:
        workers.ask("1", "2")
    assert "install math-verify" in str(error.value.hint)
