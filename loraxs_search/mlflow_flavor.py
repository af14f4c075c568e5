"""What MLflow imports to load a version of the registry: `mlflow.pyfunc.load_model("models:/TASK@champion")`.

The folder is checked as `pull` checks one, by its manifest, and answered with `Predictor`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import LoraxsError
from loraxs_search.manifest import read_manifest
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.predictor import Predictor
from loraxs_search.registry.factor_sets import bring
from loraxs_search.registry.store import Registry

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> MlflowPredictor:
    """Load a version as MLflow has fetched it; called by MLflow.

    Args:
        path: The folder, with MLflow's files beside the adapter's.
        model_config: `device`, such as `cuda`.
    Raises:
        IntegrityError: the adapter's files are not what its manifest says.
        BaseModelError: as `load_adapter`.
    """
    folder = Path(path)
    device = str((model_config or {}).get("device", "cpu"))
    predictor = Predictor(folder, device=device, in_registry=True)  # compares the files
    manifest = read_manifest(folder)
    try:
        bring(Registry(resolve_uri()), manifest.base_digest, manifest.factors)
    except LoraxsError as error:  # a server of models need not reach the registry
        log.warning("factors could not be fetched, so they are computed here: %s", error.message)
    return MlflowPredictor(predictor.load())


class MlflowPredictor:
    """Answers tables with an adapter, from any thread: MLflow's server has several."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._lock = threading.Lock()

    def predict(self, model_input: DataFrame) -> DataFrame:
        """Return the answers as `predict --json` has them: `label`, `score`, and what else the kind gives.

        Args:
            model_input: A row for each question, with the columns that the task reads.
        Raises:
            MlflowException: a row has nothing to read, or something else than text.
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException

        try:
            with self._lock:
                answers = [asdict(answer) for answer in self._predictor(model_input)]
        except LoraxsError as error:  # a server of MLflow answers its own exceptions with status 400 and the message
            hint = f" ({error.hint})" if error.hint else ""
            raise MlflowException.invalid_parameter_value(f"{error.message}{hint}") from error
        kept = ("probabilities", "expected", "entities")
        names = ["label", "score", *(name for name in kept if any(row[name] is not None for row in answers))]
        columns = {}
        for name in names:
            own = [row[name] for row in answers]
            # A column of type object keeps None; as numbers it would be NaN, which JSON does not have.
            dtype = float if own and all(isinstance(value, float) for value in own) else object
            columns[name] = pd.Series(own, model_input.index, dtype)
        return pd.DataFrame(columns)
