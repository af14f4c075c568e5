"""Servers of tiny adapters that a registry holds: real HTTP on a loopback port, in this process."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from support.toy_language import choosing, save_base, writing
from support.toys import promote as sealed_promote
from support.toys import seal

from loraxs_search.base_model.locate import locate
from loraxs_search.cli.serve import listen
from loraxs_search.factors.store import FactorStore
from loraxs_search.manifest import Manifest, verify
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.records.codec import from_json
from loraxs_search.records.search import OperatingPoint
from loraxs_search.records.task import BaseModelRef, Task
from loraxs_search.registry.store import Registry
from loraxs_search.serve.app import Server
from loraxs_search.serve.bodies import Limits
from loraxs_search.serve.served_models import ServedModels


@dataclass
class Running:
    """A server that answers, and the registry behind it."""

    url: str
    server: Server
    uri: str
    promote: Callable[[Path], str]

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        content = json.dumps(body).encode()  # NaN and infinity too, which `requests` refuses
        headers = {"content-type": "application/json"}
        return requests.post(self.url + path, data=content, headers=headers, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def classify(self, model: str, texts: Any, **options: Any) -> Any:
        return self.post("/classify", {"model": model, "input": texts, **options}).json()


@contextlib.contextmanager
def running(server: Server) -> Iterator[str]:
    """Yield the address of a server that answers until the end."""
    listening = listen("127.0.0.1", 0)
    own = uvicorn.Server(uvicorn.Config(server.app, log_level="warning", access_log=False))
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    while True:  # the socket accepts before the application is up
        with contextlib.suppress(requests.ConnectionError):
            requests.get(f"{url}/health", timeout=60).raise_for_status()
            break
        assert thread.is_alive()
    try:
        yield url
    finally:
        own.should_exit = True
        thread.join()


@pytest.fixture(scope="package")
def registry(store_template, tmp_path_factory):
    """The address of a store in a home of the module's own, and what promotes an adapter folder there."""
    folder = tmp_path_factory.mktemp("served")
    home = folder / "home"
    home.mkdir()
    shutil.copy(store_template, home / "mlflow.db")
    uri, count = f"sqlite:///{home / 'mlflow.db'}", 0

    def promote(source: Path) -> str:
        """Make a copy of an adapter its task's champion, and return its digest."""
        nonlocal count
        count += 1
        sealed = folder / f"sealed-{count}"
        shutil.copytree(source, sealed)
        manifest = from_json(Manifest, (source / "manifest.json").read_bytes())
        seal(sealed, replace(manifest, created_at="2026-11-29T00:00:00+00:00", study=f"s{count}"))
        return Registry(uri).resolve(sealed_promote(sealed, uri)).digest

    with pytest.MonkeyPatch.context() as patch, use_factor_store(FactorStore(folder / "factors")):
        patch.setenv("LORAXS_HOME", str(home))
        yield uri, promote


@pytest.fixture(scope="package")
def base(tiny_base, registry):
    return locate(BaseModelRef(str(tiny_base)))


@pytest.fixture(scope="package")
def folders(base, make_adapter, tmp_path_factory):
    """Adapters of classifiers of two and three labels, and of a regression; `two-again` is of the first one's task."""
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {
        "two": {"rank": 4},
        "two-again": {"rank": 4, "scale": 2.0},
        "three": {"rank": 2, "num_labels": 3},
        "number": {"rank": 4, "num_labels": 1},
    }
    made = {
        name: make_adapter(folder / name, base, seed=seed, **kind) for seed, (name, kind) in enumerate(kinds.items())
    }
    points = (OperatingPoint(0.9, 0.0, 100), OperatingPoint(0.95, 1.0, 100), OperatingPoint(0.99, None, 100))
    seal(made["two"], replace(verify(made["two"]), operating_points=points))
    return made


@pytest.fixture(scope="package")
def encoder(registry, folders):
    """A server of task-1, task-3 and task-2 on the tiny encoder, which looks the registry up again and again."""
    uri, promote = registry
    for name in ("two", "three", "number"):
        promote(folders[name])
    models = ServedModels(["task-1", "task-3", "task-2"], uri=uri)
    server = Server(models, limits=Limits(body_bytes=100_000, rows=100, rows_at_once=8), poll_s=0.05)
    with running(server) as url:
        yield Running(url, server, uri, promote)


WRITERS: dict[str, Task] = {
    "one": writing("one"),
    "two": writing("two", prompt="{first} say {second}"),
    "talking": writing("talking", prompt=None, messages=[{"role": "user", "content": "say {words}"}]),
    "listed": choosing("listed", options="choices"),
}


@pytest.fixture(scope="package")
def decoder(registry, make_adapter, tmp_path_factory):
    """A server of adapters that write and choose, on a decoder of a toy language with a chat template."""
    uri, promote = registry
    folder = tmp_path_factory.mktemp("decoder")
    base = save_base(folder / "base", chat=True)
    for seed, (name, task) in enumerate(WRITERS.items()):
        promote(make_adapter(folder / name, base, task=task, seed=seed, rank=4))
    server = Server(ServedModels(list(WRITERS), uri=uri), limits=Limits(rows_at_once=8), poll_s=0.05)
    with running(server) as url:
        yield Running(url, server, uri, promote)
