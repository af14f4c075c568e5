"""Which adapters vLLM can serve, and the line of a shell that serves them."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraxs_search.errors import RegistryError, UsageError

if TYPE_CHECKING:
    from loraxs_search.records import Manifest

ENTRY = "loraxs-search"  # our plug-ins' name, which VLLM_PLUGINS has to hold
ENV_TASKS = "LORAXS_VLLM_TASKS"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that `--max-lora-rank` takes
_MAX_LORAS = 8  # of one batch: vLLM keeps memory for so many adapters of the largest rank

log = logging.getLogger(__name__)


def plain_rank(manifest: Manifest) -> int:
    """Return the rank that an adapter has as plain LoRA.

    Raises:
        UsageError: vLLM cannot serve it.
    """
    from loraxs_search.methods import get_method
    from loraxs_search.tasks.kinds import kind_of

    task, method = manifest.task, get_method(manifest.hyperparameters.method)
    instead = f"`loraxs-search serve {task.registered_name}` serves it"
    if kind_of(task).model.num_outputs is not None:
        raise UsageError(
            f"An adapter for vLLM must have no head, but {task.registered_name} is of kind {task.kind}, which has one.",
            hint=instead,
        )
    if not method.has_plain_lora:
        raise UsageError(
            f"An adapter for vLLM must become plain LoRA, but {task.registered_name} is of method {method.name}.",
            hint=instead,
        )
    rank = method.lora_rank(manifest.hyperparameters)
    if rank > _RANKS[-1]:
        raise UsageError(
            f"The rank of an adapter for vLLM must be at most {_RANKS[-1]}, but {task.registered_name} has {rank}.",
            hint=instead,
        )
    return rank


def rank_option(rank: int) -> int:
    """Return the least `--max-lora-rank` for adapters of a rank."""
    return next(allowed for allowed in _RANKS if allowed >= rank)


def vllm_command(
    tasks: Sequence[str], *, uri: str, base: str | None = None, host: str = "127.0.0.1", port: int = 8000
) -> str:
    """Return the line of a shell that serves tasks with vLLM.

    Args:
        tasks: All on one base; empty means every task of the registry that fits the first that vLLM can serve.
        uri: The registry, as `resolve_uri` gives it.
        base: Name of the base that tasks must be on; None takes that of the first.
        host: Where vLLM listens. The line always names it: vLLM's own default is every interface, without a key.
        port: The port there.
    Raises:
        RegistryError: a task is not in the registry.
        UsageError: there is none to serve, or one cannot be served, or not beside the others.
        BaseModelError: the base is not on this machine.
    """
    from loraxs_search import base_model

    manifests = _fitting(tasks, uri, base)
    located = base_model.locate(manifests[0].base_model)
    model = [located.id, "--revision", located.revision] if located.revision else [located.path]
    variables = {
        "LORAXS_HOME": os.environ.get("LORAXS_HOME"),
        "MLFLOW_TRACKING_URI": _told(uri),
        ENV_TASKS: ",".join(tasks) or "*",
        "VLLM_PLUGINS": ENTRY,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    rank = rank_option(max(map(plain_rank, manifests)))
    options = ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(min(len(manifests), _MAX_LORAS))]
    options += ["--generation-config", "vllm"]  # without the penalties of the base's own settings
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items() if value]
    place = ["--host", host, "--port", str(port)]
    command = ["vllm", "serve", *model]
    return " \\\n".join([*lines, shlex.join(command), "  " + shlex.join(place), "  " + shlex.join(options)])


def _told(uri: str) -> str | None:
    """Return the store that the line names; None if vLLM finds it itself, or inherits it with an account."""
    from loraxs_search.mlflow_uri import ENV_URI, resolve_uri

    own = os.environ.get(ENV_URI, "")
    return None if uri == resolve_uri() and (not own or "@" in own) else uri


def _fitting(tasks: Sequence[str], uri: str, base: str | None) -> list[Manifest]:
    from loraxs_search.registry import verify
    from loraxs_search.registry.pull import pull
    from loraxs_search.registry.reader import RegistryReader

    names = tasks or [summary.task for summary in RegistryReader(uri).summaries() if summary.version is not None]
    found: list[Manifest] = []
    for name in names:
        try:
            manifest = verify(pull(name, uri=uri))
            plain_rank(manifest)
            _check_same_base(manifest, found, base)
            found.append(manifest)
        except (RegistryError, UsageError) as error:
            if tasks:
                raise
            log.warning("%s is not served: %s", name, error.message)
    if not found:
        raise UsageError(
            "vLLM must have a task to serve, but the registry has none that it can.", hint="see `loraxs-search ls`"
        )
    return found


def _check_same_base(manifest: Manifest, others: Sequence[Manifest], base: str | None) -> None:
    own, task = manifest.base_model.id, manifest.task.registered_name
    if base is not None and base.rpartition("/")[2] != own.rpartition("/")[2]:
        raise UsageError(f"Tasks must be on {base}, but {task} is on {own}.")
    if others and manifest.base_digest != others[0].base_digest:
        raise UsageError(
            f"Tasks must be on one base, but {others[0].task.registered_name} is on {others[0].base_model.id}, and"
            f" {task} on {own}.",
            hint="start another vLLM for it",
        )
