"""Names that vLLM asks for, against a stand-in that keeps a name's first adapter for ever, as vLLM does.

The real one: tests/integration/test_other_software.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fastapi
import pytest
from support.toy_language import save_base, writing

from loraxs_search.base_model import linear_modules, locate, with_setup
from loraxs_search.errors import LoraxsError, RegistryUnreadableError, UsageError
from loraxs_search.records import BaseModelRef, TaskModel
from loraxs_search.registry import Registry
from loraxs_search.registry.reader import RegistryReader
from loraxs_search.serve import vllm_plugin
from loraxs_search.serve.vllm_command import rank_option, vllm_command
from loraxs_search.serve.vllm_plugin import TaskResolver


class Vllm:
    """What vLLM does with a resolver, in order."""

    def __init__(self, model: str, resolver: TaskResolver) -> None:
        self.resolver, self.served_name = resolver, "base"
        self.loaded: list[Any] = []
        self.fails = False
        self.lora_requests: dict[str, Any] = {}
        self.model_config = SimpleNamespace(model=model, revision=None)
        self.vllm_config = SimpleNamespace(lora_config=SimpleNamespace(max_lora_rank=8))
        self.lora_id_counter = SimpleNamespace(inc=lambda _: len(self.loaded) + 1)

    def is_base_model(self, name: str) -> bool:
        return name == self.served_name

    async def add_lora(self, request: Any) -> None:
        if self.fails:
            raise ValueError("no such module")
        assert (Path(request.lora_path) / "adapter_model.safetensors").is_file()
        self.loaded.append(request)

    async def attach(self) -> None:
        await self.resolver.init_state(self, SimpleNamespace(openai_serving_models=self), None)

    async def ask(self, name: str) -> str | None:
        """Return the name of what answers; None is 404."""
        if name not in self.lora_requests:
            request = await self.resolver.resolve_lora(self.model_config.model, name)
            if request is None:
                return None
            request.lora_int_id = self.lora_id_counter.inc(1)
            await self.add_lora(request)
            self.lora_requests[name] = request
        return str(self.lora_requests[name].lora_name)


OLD, NEW = "vllm", "vllm.runtime.modeling"


@pytest.fixture
def resolvers(request, monkeypatch) -> dict[str, Any]:
    """The resolvers that a stand-in of vLLM's modules holds; the parameter is where these are."""
    held: dict[str, Any] = {}
    at = getattr(request, "param", OLD)

    def place(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        vars(module).update(contents, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)

    registry = SimpleNamespace(get_supported_resolvers=held.keys, register_resolver=held.__setitem__)

    def lora_request(lora_name: str, lora_int_id: int, lora_path: str) -> Any:
        return SimpleNamespace(lora_name=lora_name, lora_int_id=lora_int_id, lora_path=lora_path)

    for name in ("vllm", "vllm.runtime", NEW):
        place(name)
    place("vllm.envs", VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, VLLM_SKIP_MODEL_NAME_VALIDATION=False)
    place(f"{at}.lora")
    place(f"{at}.lora.resolver", LoRAResolverRegistry=registry)
    place(f"{at}.lora.request", LoRARequest=lora_request)
    vllm_plugin.plugin.cache_clear()
    yield held
    vllm_plugin.plugin.cache_clear()


@pytest.fixture(scope="module")
def model(registry, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("for-vllm") / "base"
    save_base(folder)
    return str(folder)


@pytest.fixture(scope="module")
def writer(model, make_adapter, tmp_path_factory):
    """Make an adapter that writes; each has other numbers."""
    located = locate(BaseModelRef(model))
    modules = tuple(module.name for module in linear_modules(located, TaskModel("AutoModelForCausalLM")))
    seeds = iter(range(100))

    def make(task: str, *, on: str | None = None, rank: int = 4) -> Path:
        own = located if on is None else locate(BaseModelRef(on))
        folder = tmp_path_factory.mktemp("adapter") / "a"
        return make_adapter(folder, own, task=writing(task), seed=next(seeds), rank=rank, target_modules=modules)

    return make


@pytest.fixture
def in_registry(registry, monkeypatch):
    """The store that names are looked up in, and what promotes."""
    uri, promote = registry
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("LORAXS_HOME", str(Path(uri.removeprefix("sqlite:///")).parent))
    return promote


def resolver(tasks: list[str], *, poll_s: float = 3600.0, retry_s: float = 60.0) -> TaskResolver:
    """Return a resolver that looks names up again when it is told to."""
    return TaskResolver(tasks, poll_s=poll_s, retry_s=retry_s)


def served(vllm: Vllm, scenario) -> Any:
    """Run a scenario on an event loop, with the plug-in's table of names in place."""

    async def run() -> Any:
        await vllm.attach()
        return await scenario()

    return asyncio.run(run())


def short(task: str, digest: str) -> str:
    return f"{task}@{digest[:16]}"


# ---- names -----------------------------------------------------------------------------------------------------------
def test_a_name_is_answered_by_its_champion_and_follows_it(resolvers, model, writer, in_registry):
    first = in_registry(writer("moves"))
    vllm = Vllm(model, resolver(["moves"]))

    async def scenario():
        assert await vllm.ask("moves") == short("moves", first)
        assert await vllm.ask("moves@champion") == await vllm.ask("moves:1") == short("moves", first)
        second = in_registry(writer("moves"))
        in_flight = vllm.lora_requests["moves"]
        await vllm.resolver.refresh()
        assert await vllm.ask("moves") == await vllm.ask("moves@champion") == short("moves", second)
        assert in_flight.lora_name == short("moves", first)  # what was asked is not changed
        assert await vllm.ask("moves:1") == await vllm.ask(short("moves", first)) == short("moves", first)
        numbers = {request.lora_int_id for request in vllm.loaded}
        assert len(numbers) == len(vllm.loaded)  # vLLM takes two of one number for one adapter

    served(vllm, scenario)


def test_a_champion_that_moves_while_vllm_loads_the_old_one_is_seen(resolvers, model, writer, in_registry, registry):
    in_registry(writer("late"))
    database = Path(registry[0].removeprefix("sqlite:///"))
    vllm = Vllm(model, resolver(["late"]))

    async def scenario():
        request = await vllm.resolver.resolve_lora(model, "late")
        second = in_registry(writer("late"))
        for file in database.parent.glob(f"{database.name}*"):
            os.utime(file, (1e9, 1e9))  # nothing is written to the registry from now on
        await vllm.resolver.refresh()  # vLLM has not put the name down yet
        vllm.lora_requests["late"] = request
        await vllm.resolver.refresh()
        assert await vllm.ask("late") == short("late", second)

    served(vllm, scenario)


def test_names_follow_by_themselves(resolvers, model, writer, in_registry):
    in_registry(writer("followed"))
    vllm = Vllm(model, resolver(["followed"], poll_s=0.01))

    async def scenario():
        await vllm.ask("followed")
        second = in_registry(writer("followed"))
        while await vllm.ask("followed") != short("followed", second):
            await asyncio.sleep(0.01)

    served(vllm, scenario)


def test_a_name_that_means_nothing_any_more_is_taken_away(resolvers, model, writer, in_registry, registry):
    in_registry(writer("removed"))
    vllm = Vllm(model, resolver(["*"]))

    async def scenario():
        assert await vllm.ask("removed") is not None
        Registry(registry[0]).remove("removed:1", forced=True)
        await vllm.resolver.refresh()
        assert await vllm.ask("removed") is None

    served(vllm, scenario)


def test_adapters_that_others_have_loaded_stay(resolvers, model, writer, in_registry):
    own = SimpleNamespace(lora_name="by-hand", lora_int_id=7, lora_path="somewhere")
    vllm = Vllm(model, resolver(["*"]))
    vllm.lora_requests["by-hand"] = own

    async def scenario():
        await vllm.resolver.refresh()
        assert vllm.lora_requests == {"by-hand": own}

    served(vllm, scenario)


# ---- what is refused -------------------------------------------------------------------------------------------------
def test_what_vllm_must_not_answer_for_is_404(
    resolvers, model, writer, folders, in_registry, tmp_path_factory, monkeypatch
):
    other = tmp_path_factory.mktemp("other") / "base"
    save_base(other, chat=True)  # of another size
    for name in ("mine", "not-offered"):
        in_registry(writer(name))
    in_registry(writer("of-another-base", on=str(other)))
    in_registry(writer("too-large", rank=16))
    in_registry(folders["three"])  # task-3, a classifier
    vllm = Vllm(model, resolver(["mine", "of-another-base", "too-large", "task-3", "nobody"]))

    async def scenario():
        names = ("mine", "not-offered", "of-another-base", "too-large", "task-3", "nobody", "org/model", "mine:9", "")
        return [name for name in names if await vllm.ask(name)]

    assert served(vllm, scenario) == ["mine"]


def test_a_base_of_other_settings_is_another_base(resolvers, model, writer, in_registry, tmp_path):
    in_registry(writer("settings"), setup=with_setup(locate(BaseModelRef(model))).setup)
    (tmp_path / "copy").mkdir()
    for file in Path(model).iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    vllm = Vllm(str(tmp_path / "copy"), resolver(["settings"]))

    async def scenario():
        return await vllm.ask("settings")

    assert served(vllm, scenario)
    config = tmp_path / "copy" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.1}))
    vllm = Vllm(str(tmp_path / "copy"), resolver(["settings"]))
    assert served(vllm, scenario) is None


@pytest.mark.parametrize("retry_s", [60.0, 0.0])
def test_a_champion_that_cannot_be_served_leaves_the_old_one_until_it_can(
    retry_s, resolvers, model, writer, in_registry
):
    first = in_registry(writer("kept"))
    vllm = Vllm(model, resolver(["kept"], retry_s=retry_s))

    async def scenario():
        await vllm.ask("kept")
        second = in_registry(writer("kept"))
        vllm.fails = True
        await vllm.resolver.refresh()
        assert await vllm.ask("kept") == short("kept", first)
        vllm.fails = False
        await vllm.resolver.refresh()
        assert await vllm.ask("kept") == short("kept", first if retry_s else second)
        third = in_registry(writer("kept"))  # another one need not wait
        await vllm.resolver.refresh()
        assert await vllm.ask("kept") == short("kept", third)

    served(vllm, scenario)


def test_a_registry_that_is_away_is_503_and_names_keep_their_adapters(resolvers, model, in_registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    vllm = Vllm(model, resolver(["*"]))
    vllm.lora_requests["any"] = SimpleNamespace(lora_name=short("any", "0" * 64), lora_int_id=1, lora_path="x")

    async def scenario():
        with pytest.raises(fastapi.HTTPException) as away:
            await vllm.ask("new")
        await vllm.resolver.refresh()
        return away.value.status_code, await vllm.ask("any")

    assert served(vllm, scenario) == (503, short("any", "0" * 64))


@pytest.mark.parametrize("gone", [True, False])
def test_a_store_that_cannot_be_read_takes_no_name_away(
    gone, resolvers, model, writer, in_registry, registry, monkeypatch
):
    """Its database is not there, or MLflow fails at it."""
    known = in_registry(writer("known"))
    vllm = Vllm(model, resolver(["*"]))
    store = Path(registry[0].removeprefix("sqlite:///"))

    def fails(*_):
        raise RegistryUnreadableError("The registry failed.")

    async def scenario():
        assert await vllm.ask("known") == short("known", known)
        away = store.rename(store.with_name("away.db")) if gone else store
        with monkeypatch.context() as patch:
            if not gone:
                patch.setattr(RegistryReader, "resolve", fails)
                vllm.resolver._settled = None
            await vllm.resolver.refresh()
            assert await vllm.ask("known") == short("known", known)
        away.rename(store)

    served(vllm, scenario)


def test_nothing_is_resolved_without_vllms_table_of_names(resolvers, model, writer, in_registry):
    in_registry(writer("unattached"))
    vllm = Vllm(model, resolver(["unattached"]))
    assert asyncio.run(vllm.ask("unattached")) is None


@pytest.mark.parametrize("fault", ["no lora", "no updates", "no names", "taken"])
def test_a_vllm_that_is_set_up_wrongly_does_not_start(fault, resolvers, model, monkeypatch):
    vllm = Vllm(model, resolver(["task"]))
    if fault == "no lora":
        vllm.vllm_config.lora_config = None
    if fault == "no updates":
        monkeypatch.setattr(sys.modules["vllm.envs"], "VLLM_ALLOW_RUNTIME_LORA_UPDATING", False)
    if fault == "no names":
        monkeypatch.setattr(sys.modules["vllm.envs"], "VLLM_SKIP_MODEL_NAME_VALIDATION", True)
    if fault == "taken":
        vllm.served_name = "task"
    with pytest.raises(UsageError):
        asyncio.run(vllm.attach())


# ---- entry points ----------------------------------------------------------------------------------------------------
def test_the_plug_in_does_nothing_unless_tasks_are_named(resolvers, model, monkeypatch):
    monkeypatch.delenv("LORAXS_VLLM_TASKS", raising=False)
    vllm_plugin.register()
    assert not resolvers
    vllm = Vllm(model, vllm_plugin.plugin())
    vllm.vllm_config.lora_config = None  # of a server without adapters
    asyncio.run(vllm.attach())


@pytest.mark.parametrize("resolvers", [OLD, NEW], indirect=True)
def test_the_plug_in_registers_itself_once(resolvers, monkeypatch):
    monkeypatch.setenv("LORAXS_VLLM_TASKS", "one, two@champion,")
    monkeypatch.setenv("VLLM_PLUGINS", "another,loraxs-search")
    vllm_plugin.register()
    first = dict(resolvers)
    vllm_plugin.register()
    assert resolvers == first == {"loraxs-search": vllm_plugin.plugin()}
    assert vllm_plugin.plugin().tasks == {"one", "two"}


@pytest.mark.parametrize(("tasks", "plugins"), [("task", None), ("task", "another"), ("not a name", "loraxs-search")])
def test_settings_that_would_serve_nothing_are_said_at_once(tasks, plugins, resolvers, monkeypatch):
    monkeypatch.setenv("LORAXS_VLLM_TASKS", tasks)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if plugins:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    with pytest.raises(LoraxsError):
        vllm_plugin.register()


def test_every_process_of_vllm_loads_it_at_no_cost():
    heavy = "{'torch', 'mlflow', 'transformers', 'pydantic'}"
    load = "from loraxs_search.serve import vllm_plugin as p; p.register(); p.plugin()"
    subprocess.run([sys.executable, "-c", f"import sys; {load}; assert not {heavy} & set(sys.modules)"], check=True)


# ---- the command -----------------------------------------------------------------------------------------------------
def test_the_printed_command_is_for_what_is_asked(say, model, writer, folders, in_registry):
    for name, rank in (("small", 4), ("wide", 9)):
        in_registry(writer(name, rank=rank))
    in_registry(folders["two"])  # task-2, a classifier
    said = say("serve", "small", "wide", "--print-vllm")
    assert said.code == 0, said.err
    assert "LORAXS_VLLM_TASKS=small,wide" in said.out
    assert "VLLM_PLUGINS=loraxs-search" in said.out
    assert f"vllm serve {model}" in said.out
    assert "--enable-lora --max-lora-rank 16 --max-loras 2" in said.out
    syntax = subprocess.run(["bash", "-n", "-c", said.out], capture_output=True, text=True, check=False)
    assert not syntax.stderr
    assert "--max-lora-rank 8" in say("serve", "small", "--print-vllm").out
    everything = say("serve", "--all", "--print-vllm", "--base", model)
    assert "LORAXS_VLLM_TASKS='*'" in everything.out
    refused = say("serve", "small", "task-2", "--print-vllm")
    assert (refused.code, refused.out) == (2, "")
    assert "must have no head" in refused.err


def test_the_printed_command_listens_where_serve_would(say, writer, in_registry):
    in_registry(writer("placed"))
    assert "--host 127.0.0.1 --port 8000" in say("serve", "placed", "--print-vllm").ok  # vLLM's own host is any
    placed = say("serve", "placed", "--print-vllm", "--host", "::1", "--port", "9000")
    assert "--host ::1 --port 9000" in placed.ok


def test_tasks_of_two_bases_have_no_command(model, writer, in_registry, registry, tmp_path_factory):
    other = tmp_path_factory.mktemp("second") / "base"
    save_base(other, chat=True)
    in_registry(writer("here"))
    in_registry(writer("there", on=str(other)))
    with pytest.raises(UsageError, match="on one base"):
        vllm_command(["here", "there"], uri=registry[0])


def test_an_account_of_the_registry_is_not_printed(writer, in_registry, registry, monkeypatch):
    in_registry(writer("secret"))
    uri = registry[0]
    assert f"MLFLOW_TRACKING_URI={uri}" in vllm_command(["secret"], uri=uri)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "MLFLOW_TRACKING_URI" not in vllm_command(["secret"], uri=uri)


@pytest.mark.parametrize(("rank", "option"), [(1, 1), (2, 8), (8, 8), (65, 128), (300, 320), (512, 512)])
def test_the_rank_option_is_one_that_vllm_takes(rank, option):
    assert rank_option(rank) == option
