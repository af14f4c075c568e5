"""Find, keep and hand out tiny adapters.

    loraxs_search.init("reviews.csv")              # a space for your rows, or for a DataFrame
    loraxs_search.launch("movie_reviews")          # search
    loraxs_search.promote()                        # let the rule decide
    loraxs_search.pull("movie-reviews")            # a folder that PEFT loads
    loraxs_search.load("movie-reviews")            # answers texts, again and again
    loraxs_search.load_adapter("movie-reviews")    # a PEFT model, ready
    loraxs_search.AdapterBank.of("movie-reviews")  # thousands of adapters in one batch

Importing the package loads none of torch, ray or mlflow, and makes the PEFT method `LORAXS` known as soon as PEFT
is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraxs_search.api import (
        history,
        load,
        load_adapter,
        load_tokenizer,
        ls,
        predict,
        promote,
        pull,
        remove,
        report,
        rollback,
        show,
    )
    from loraxs_search.bank.bank import AdapterBank
    from loraxs_search.home import spaces
    from loraxs_search.interactive import launch, resume
    from loraxs_search.predictor import Predictor
    from loraxs_search.records.adapter import Prediction
    from loraxs_search.reports.comparison import compare
    from loraxs_search.reports.html.page import figures
    from loraxs_search.reports.study_status import StudyStatus, status, watch
    from loraxs_search.scaffold.draft import init
    from loraxs_search.search.driver.check import CheckedSpace, check
    from loraxs_search.search.driver.result import SearchResult
    from loraxs_search.steering import add_trial, extend_study, finish_study, stop_trials

from wrapt import register_post_import_hook

__version__ = "0.1.0"

__all__ = [
    "AdapterBank",
    "CheckedSpace",
    "Prediction",
    "Predictor",
    "SearchResult",
    "StudyStatus",
    "__version__",
    "add_trial",
    "check",
    "compare",
    "extend_study",
    "figures",
    "finish_study",
    "history",
    "init",
    "launch",
    "load",
    "load_adapter",
    "load_tokenizer",
    "ls",
    "predict",
    "promote",
    "pull",
    "remove",
    "report",
    "resume",
    "rollback",
    "show",
    "spaces",
    "status",
    "stop_trials",
    "watch",
]

_HOMES = {
    name: module
    for module, names in {
        "bank.bank": ["AdapterBank"],
        "interactive": ["launch", "resume"],
        "predictor": ["Predictor"],
        "records.adapter": ["Prediction"],
        "reports.comparison": ["compare"],
        "reports.html.page": ["figures"],
        "reports.study_status": ["StudyStatus", "status", "watch"],
        "scaffold.draft": ["init"],
        "search.driver.result": ["SearchResult"],
        "search.driver.check": ["CheckedSpace", "check"],
        "home": ["spaces"],
        "steering": ["add_trial", "extend_study", "finish_study", "stop_trials"],
    }.items()
    for name in names
}

# PEFT learns of LORAXS when PEFT is imported, at once if it is already: no torch is loaded on our account.
register_post_import_hook(lambda _: importlib.import_module("loraxs_search.methods.loraxs"), "peft")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"loraxs_search.{_HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
