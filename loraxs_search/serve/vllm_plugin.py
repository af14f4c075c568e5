"""vLLM serves the tasks of a registry: the champion answers `model="TASK"`, and the answer names it, `TASK@DIGEST`.

vLLM keeps what a name first meant for as long as it runs. So this is two of its plug-ins: `register` offers a resolver
of names (group `vllm.general_plugins`), and `plugin` gives that resolver vLLM's table of names (group
`vllm.endpoint_plugins`), in which it replaces the entries that have come to mean another adapter. Without that table
nothing is resolved.

Every process of vLLM calls them, maybe several times. They do nothing unless `LORAXS_VLLM_TASKS` is set.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import (
    LoraxsError,
    RegistryError,
    RegistryUnreadableError,
    TrackingError,
    UnknownTaskError,
    UnknownVersionError,
    UsageError,
)
from loraxs_search.serve.vllm_command import ENTRY, ENV_TASKS, plain_rank, rank_option

if TYPE_CHECKING:
    from loraxs_search.records import BaseModel
    from loraxs_search.registry import RegisteredAdapter
    from loraxs_search.registry.reader import RegistryReader

_MARK_S = 3600.0
_PINNED = re.compile(r"(?P<task>[^@:]+)@(?P<digits>[0-9a-f]{16})")

log = logging.getLogger("vllm.loraxs_search")  # below vLLM's own logger, which has a handler


# ---- entry points ----------------------------------------------------------------------------------------------------
def register() -> None:
    """Offer vLLM a resolver of the names in `LORAXS_VLLM_TASKS`; nothing where that is not set.

    Raises:
        RegistryError: a name in it is none.
        UsageError: vLLM was not configured to load `plugin`.
    """
    if not plugin().tasks:
        return
    if ENTRY not in os.environ.get("VLLM_PLUGINS", "").split(","):
        raise UsageError(
            f"`VLLM_PLUGINS` must name {ENTRY} where `{ENV_TASKS}` is set: vLLM loads all of the plug-in only then.",
            hint=f"set VLLM_PLUGINS={ENTRY}, with the names of other plug-ins that you use",
        )
    registry = _vllm("lora.resolver").LoRAResolverRegistry
    if ENTRY not in registry.get_supported_resolvers():
        registry.register_resolver(ENTRY, plugin())


@functools.cache
def plugin() -> TaskResolver:
    """Return this process's resolver, which has no tasks where `LORAXS_VLLM_TASKS` is not set."""
    names = [name.strip() for name in os.environ.get(ENV_TASKS, "").split(",")]
    return TaskResolver([name for name in names if name])


def _vllm(name: str) -> Any:
    try:
        return importlib.import_module(f"vllm.{name}")
    except ModuleNotFoundError:  # where trees after 0.32 have it
        return importlib.import_module(f"vllm.runtime.modeling.{name}")


# ---- the resolver ----------------------------------------------------------------------------------------------------
class TaskResolver:
    """A `LoRAResolver` and an `EndpointPlugin` of vLLM; coroutines run on the event loop of its API server.

    Args:
        tasks: `TASK`, of which any adapter may be asked for; `*` is every task of the registry. None resolves nothing.
        poll_s: How often names are looked up again.
        retry_s: When an adapter that vLLM could not load is tried again.
    Raises:
        RegistryError: a name is none.
    """

    name = ENTRY
    required_tasks = ("generate",)

    def __init__(self, tasks: Sequence[str], *, poll_s: float = 1.0, retry_s: float = 60.0) -> None:
        self.tasks = frozenset(task if task == "*" else _task_of(task) for task in tasks)
        self._poll_s, self._retry_s = poll_s, retry_s
        self._models: Any = None  # vLLM's table of names, once it is there
        self._engine: Any = None
        self._follower: asyncio.Task[None] | None = None
        self._located: BaseModel | None = None
        self._refused: dict[str, tuple[str, float]] = {}  # names to new adapters that failed, and when to try again
        self._settled: object = None  # how the registry stood, and what names meant
        self._marked = time.monotonic()
        self._is_away = False

    # ---- called by vLLM ----------------------------------------------------------------------------------------------
    def attach_router(self, app: Any) -> None:
        """Add no route."""

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Take vLLM's table of names, and follow champions from now on.

        Raises:
            UsageError: vLLM is not set up to load adapters by name, or would let its base answer for one.
        """
        if not self.tasks:
            return
        models = state.openai_serving_models
        _check_setup(engine_client.vllm_config, models, self.tasks)
        self._models, self._engine = models, engine_client
        self._follower = asyncio.create_task(self._follow())

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any | None:
        """Return the adapter of a name, for vLLM to load; None, which it answers with 404, if there is none to serve.

        Raises:
            fastapi.HTTPException: 503, the registry does not answer.
        """
        if not self._offers(lora_name):
            return None
        if self._models is None:
            log.error("%s is not served: this vLLM gives plug-ins no table of names to follow champions in", lora_name)
            return None
        from fastapi import HTTPException

        try:
            return await asyncio.to_thread(self._exported, lora_name)
        except (TrackingError, RegistryUnreadableError) as error:
            raise HTTPException(503, f"The registry does not answer: {error.message}") from error
        except LoraxsError as error:
            log.warning("%s is not served: %s", lora_name, error.message)
            return None

    # ---- champions move ----------------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Look each name up again that vLLM has from here, and give it the adapter that it means by now.

        A name that means nothing any more is taken away. One whose new adapter cannot be served keeps its old one, as
        do all while the registry does not answer.
        """
        from loraxs_search.registry.names import store_stamp

        table = self._models.lora_requests.items()
        names = {name: request for name, request in table if _PINNED.fullmatch(request.lora_name)}
        self._mark_used(names)
        stamp = store_stamp(self._uri)
        state = stamp, {name: request.lora_name for name, request in names.items()}
        if stamp is not None and state == self._settled:
            return
        for name, request in names.items():
            try:
                self._reader.check_there()
                await self._refresh_name(name, request)
            except (TrackingError, RegistryUnreadableError) as error:
                if not self._is_away:
                    log.warning("names keep their adapters: the registry does not answer: %s", error.message)
                self._is_away, self._settled = True, None
                return
        self._is_away, self._settled = False, None if self._refused else state

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.refresh()
            except Exception:  # vLLM keeps what it has
                log.exception("names were not refreshed")

    async def _refresh_name(self, name: str, request: Any) -> None:
        table = self._models.lora_requests
        try:
            digest = (await asyncio.to_thread(self._registered, name)).digest
        except (UnknownTaskError, UnknownVersionError) as error:
            log.warning("%s is served no longer: %s", name, error.message)
            if table.get(name) is request:
                del table[name]
            return
        refused, until = self._refused.get(name, ("", 0.0))
        if refused == digest and time.monotonic() < until:
            return
        self._refused.pop(name, None)
        if _pinned(name, digest) == request.lora_name:
            return
        try:
            fresh = await asyncio.to_thread(self._exported, name)
            fresh.lora_int_id = self._models.lora_id_counter.inc(1)
            await self._engine.add_lora(fresh)
        except (TrackingError, RegistryUnreadableError):
            raise
        except Exception as error:  # noqa: BLE001  # vLLM's own, too, such as of a module that it does not adapt
            self._refused[name] = digest, time.monotonic() + self._retry_s
            log.warning("%s keeps its adapter: its new one is refused: %s", name, error)
            return
        if table.get(name) is request:
            table[name] = fresh  # requests in flight keep theirs
            log.info("%s is %s now", name, fresh.lora_name)

    def _mark_used(self, names: Mapping[str, Any]) -> None:
        """Keep `gc` from exports that vLLM may read again: it ends where one is missing."""
        from loraxs_search.home import mark_used

        if time.monotonic() - self._marked > _MARK_S:
            self._marked = time.monotonic()
            for request in names.values():
                mark_used(Path(request.lora_path))

    # ---- in worker threads -------------------------------------------------------------------------------------------
    def _exported(self, name: str) -> Any:
        """Return what vLLM loads of an adapter, plain LoRA, once it is known to be one of the base that it serves.

        Raises:
            LoraxsError: there is none, or it cannot be served here.
        """
        from loraxs_search.home import mark_used
        from loraxs_search.methods.export import converted
        from loraxs_search.methods.loading import verified_manifest
        from loraxs_search.registry.pull import pull

        if _PINNED.fullmatch(name):
            adapter = self._registered(name)
            name = f"{adapter.task}:{adapter.version}"
        folder = pull(name, uri=self._uri)
        manifest, _ = verified_manifest(folder, self._base())
        rank, limit = plain_rank(manifest), self._engine.vllm_config.lora_config.max_lora_rank
        if rank > limit:
            raise UsageError(
                f"`--max-lora-rank` must be at least the adapter's rank, but got {limit} where {name} has {rank}.",
                hint=f"start vLLM with --max-lora-rank {rank_option(rank)}",
            )
        export = converted(folder, "lora")
        mark_used(export)
        made = _vllm("lora.request").LoRARequest
        return made(_pinned(name, folder.name), 1, str(export))  # vLLM sets the number

    def _registered(self, name: str) -> RegisteredAdapter:
        """Return what the registry has under a name, or under `TASK@DIGEST`."""
        pinned = _PINNED.fullmatch(name)
        if pinned is None:
            return self._reader.resolve(name)
        for version in self._reader.versions(pinned["task"]):
            if version.digest.startswith(pinned["digits"]):
                return version
        raise UnknownTaskError(f"Task {pinned['task']} has no adapter of digest {pinned['digits']}.")

    def _base(self) -> BaseModel:
        """Return the base that vLLM serves, with its tokenizer's digest and configuration."""
        if self._located is None:
            from loraxs_search import base_model
            from loraxs_search.records import BaseModelRef

            config = self._models.model_config
            located = base_model.locate(BaseModelRef(config.model, config.revision))
            self._located = base_model.with_setup(located)
        return self._located

    @functools.cached_property
    def _uri(self) -> str:
        from loraxs_search.mlflow_uri import resolve_uri

        return resolve_uri()

    @functools.cached_property
    def _reader(self) -> RegistryReader:
        from loraxs_search.registry.reader import RegistryReader

        return RegistryReader(self._uri)

    # ---- names -------------------------------------------------------------------------------------------------------
    def _offers(self, name: str) -> bool:
        try:
            return bool({"*", _task_of(name)} & self.tasks)
        except RegistryError:  # another resolver's, maybe
            return False


def _task_of(name: str) -> str:
    from loraxs_search.registry.names import parse_name

    return parse_name(name).task


def _pinned(name: str, digest: str) -> str:
    return f"{_task_of(name)}@{digest[:16]}"


def _check_setup(config: Any, models: Any, tasks: frozenset[str]) -> None:
    """Refuse a vLLM that loads no adapters by name, or whose base would answer for one.

    Raises:
        UsageError: as said.
    """
    envs = _vllm("envs")
    if config.lora_config is None or not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise UsageError(
            f"vLLM must load adapters by name where `{ENV_TASKS}` is set.",
            hint="start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
        )
    if envs.VLLM_SKIP_MODEL_NAME_VALIDATION:
        raise UsageError(
            f"`VLLM_SKIP_MODEL_NAME_VALIDATION` must not go with `{ENV_TASKS}`: the base would answer for every task.",
        )
    if taken := sorted(task for task in tasks if models.is_base_model(task)):
        raise UsageError(
            f"The base must have another name than the tasks, but is served as {taken[0]}, and would answer for it.",
            hint="choose another --served-model-name",
        )
