"""What a recipe reaches on few rows: adapters that share passes, each scored on rows that it has not seen."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from loraxs_search.assets import keep
from loraxs_search.engine.passes import PassExecutor, workers_for
from loraxs_search.errors import LoraxsError, TaskDataError
from loraxs_search.packing import capacity
from loraxs_search.packing.host import LoadedBase
from loraxs_search.packing.pack import Pack, PackedModel
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.metrics import Values
from loraxs_search.tasks.rows import SPLITS
from loraxs_search.trial.linear_probe import fit_linear_probe

FOLDS = 5
_RESAMPLES = 200  # of the rows, for the standard error


def cross_validate(space: Space) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the score of a space's first trial over all rows of its training file, and of the head it starts from.

    Each comes with its standard error, of draws of the rows.

    Each of five adapters trains on four fifths of the rows, and answers the last fifth; all answers are scored as one.
    Equal rows are in one fold. Splits with files of their own are not read.

    Args:
        space: Of a task with a head, and files of rows.
    Raises:
        TaskDataError: the rows do not fit the declaration, or are fewer than five.
        TrialDivergedError, RowTooLongError: an adapter cannot be trained.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    file = space.task.source.data_files["train"]
    source = replace(space.task.source, data_files=dict.fromkeys(SPLITS, file))
    loaded = LoadedBase(space.base_model, replace(space.task, source=source, validation_rows=None))
    data, executor = loaded.prepared(), PassExecutor(*workers_for(loaded.device))
    base = PackedModel(loaded.model, loaded.factors, loaded.modules, num_workers=executor.num_workers)
    budget = capacity.token_budget(loaded.modules, loaded.dtype, loaded.device)
    pack, slots = Pack(base, max_tokens=budget, executor=executor), []
    ids, labels, known = data.encoded("train").ids, data.labels("train"), dict[bytes, int]()
    groups = [known.setdefault(ids.row(row).tobytes(), len(known)) for row in range(len(ids))]
    if len(known) < FOLDS:
        raise TaskDataError(f"Cross-validation must have {FOLDS} different rows, but there are {len(known)}.")
    strata = np.zeros(len(ids), np.int64)
    if labels.ndim == 1 and labels.dtype.kind == "i" and np.bincount(labels).max() >= FOLDS:
        strata = labels
    params = space.recipe_params()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(strata, strata, groups))
    for number, (train, held) in enumerate(folds):
        own, hyper = data.fold(train, held), space.hyperparameters(params, loaded.modules, number)
        probe = fit_linear_probe(own, loaded.model).content
        hyper = replace(hyper, linear_probe=keep(probe) if probe else None, head_init="probe" if probe else "random")
        slots.append(pack.join(TrialSpec(f"fold-{number}", params, hyper), own))

    def score() -> tuple[float, float]:
        found, answers = pack.scores(slots, "validation"), list[Values]()
        for slot in slots:
            if isinstance(scores := found[slot.name], LoraxsError):
                raise scores
            assert scores.predictions is not None  # a task with a head answers
            answers.append(scores.predictions)
        given, right = np.concatenate(answers), np.concatenate([slot.data.labels("validation") for slot in slots])
        drawn = np.random.default_rng(0).integers(0, len(right), (_RESAMPLES, len(right)))
        values = [data.kind.measure(given[rows], right[rows])[space.task.metric] for rows in (..., *drawn)]
        return values[0], float(np.nanstd(values[1:]))

    before = score()
    for _ in range(space.search.max_steps):
        for error in pack.step(slots).values():
            raise error
    return score(), before
