"""Which of the models on a pack's body reads the rows of a task, and which rows can share passes at all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from loraxs_search.base_model import Sharing, check_shared, probe_sharing
from loraxs_search.errors import UsageError
from loraxs_search.packing.adaptable import AdaptableLayers
from loraxs_search.packing.packed_model import PackedModel
from loraxs_search.packing.served_model import ServedModel
from loraxs_search.records import LinearModule
from loraxs_search.tasks import PreparedTask

ModelFor = Callable[[PreparedTask], PreTrainedModel]

_TAKE_TURNS = "set `search.pack_size` to 1 or auto: trials take turns then, each alone"


class ModelChoice:
    """Gets the model of each task, once for each class of models.

    Args:
        model_for: See `Pack`.
        sharing: Which layers of the first model rows can share.
    """

    def __init__(
        self,
        packed_model: PackedModel,
        first: ServedModel,
        modules: Sequence[LinearModule],
        model_for: ModelFor | None,
        sharing: Sharing,
    ) -> None:
        check_shared(sharing, "Trials", _TAKE_TURNS)
        self.unpackable = sharing.unpackable
        self._packed, self._modules = packed_model, modules
        self._model_for = model_for or functools.partial(_same_reading, first)
        self._served: dict[str, ServedModel] = {}  # by the class that loads it
        self._numbers_segments: bool | None = None  # in the rows of all tasks, once there is one

    def served_for(self, data: PreparedTask) -> ServedModel:
        """Return the model that reads rows of a task; gets it where it is the first of its class.

        Raises:
            BaseModelError: the task loads another body than those before, or one whose rows cannot share passes.
            UsageError: the base is given rows in another form than those of other tasks.
        """
        name = data.kind.model.auto_class
        if name not in self._served:
            self._packed.clear()
            model = self._model_for(data)
            if not self._packed.serves(model):
                self._serve(model, data)
            self._served[name] = self._packed.served(model)
        self._check_inputs(data)
        return self._served[name]

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _serve(self, model: PreTrainedModel, data: PreparedTask) -> None:
        adaptable = AdaptableLayers(model, self._modules)
        sharing = probe_sharing(model, tuple(adaptable.sizes))
        check_shared(sharing, f"Trials of task {data.task.name}", _TAKE_TURNS)
        self._packed.serve(ServedModel(model, adaptable))
        self.unpackable |= sharing.unpackable

    def _check_inputs(self, data: PreparedTask) -> None:
        """Refuse rows that the base is given in another form than those of other tasks: no pass takes both."""
        numbered = data.encoded("train").types is not None
        if self._numbers_segments not in (None, numbered):
            raise UsageError(
                "Rows of tasks that share a host must all have `token_type_ids` or none, but those of task"
                f" {data.task.name} ({data.task.kind}) have {'them' if numbered else 'none'}.",
                hint="search such tasks one after the other",
            )
        self._numbers_segments = numbered


def _same_reading(first: ServedModel, data: PreparedTask) -> PreTrainedModel:
    """Return the one model there is, if it reads rows as the task does."""
    if (data.kind.model.num_outputs is None) != bool(first.heads):
        return first.model
    has = "a head" if first.heads else "no head"
    raise UsageError(
        f"Trials of one model must read it in one way, but task {data.task.name} ({data.task.kind}) meets a base with"
        f" {has}.",
        hint="give the pack a function that returns the base as each task loads it",
    )
