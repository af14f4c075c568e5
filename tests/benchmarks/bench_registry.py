"""How long pulling and listing take: by name from the cache, cold, from the command line, and in a large registry.

    python tests/benchmarks/bench_registry.py --tasks 10000 --versions 5 --json registry.json

Makes its own stores in a temporary folder: an embedded one (SQLite), a server on another, and where PostgreSQL is
installed a server on that, started as an ordinary user and ended by its process id. The large registry is written by
bulk inserts through SQLAlchemy into the tables that MLflow has made; what is measured goes through MLflow alone.

Times are medians: of pulling what is in the cache (`cached_ms`), into an empty cache (`cold_ms`), and into an empty
home, so that the factors of its base come too (`factors_ms`); of listing the first hundred tasks (`ls_page_ms`), and
all (`ls_ms`). `command_s`, `command_factors_s` and `ls_command_s` are of `loraxs-search pull`, of the same into an
empty home, and of `loraxs-search ls --limit 100`, start to end.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import script
import sqlalchemy as sa
import torch

from loraxs_search.factors.store import FactorStore
from loraxs_search.records.search import PromotionRule
from loraxs_search.records.trial import AdapterSize
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.tracking.store import ensure_store

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `support`, which the suite shares

from support.servers import MlflowServer, postgres
from support.toys import TASK, adapter, candidate

Row = dict[str, str | int | float]  # one store, at one size


# ---- what is in the stores ------------------------------------------------------------------------------------------
def promoted(uri: str, folder: Path) -> None:
    """Promote one adapter of the usual size of this package, with the factors of a base that is as large as MiniLM."""
    store, draw = FactorStore(), torch.Generator().manual_seed(0)
    shapes = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]
    factors = dict(store.identify(torch.randn(shape, generator=draw), rank=16) for _ in range(6) for shape in shapes)
    adapter(folder, "t0", os.urandom(17_000), size=AdapterSize(16, 10, 17_000), factors=factors)
    found = replace(candidate("t0", 0.8), stored_bytes=17_000)
    Promoter(uri, TASK.name).promote(PromotionRule(), TASK, [found], {"t0": folder}, forced=True)


_COPIES = {
    "registered_models": "",
    "registered_model_aliases": "",
    "registered_model_tags": "",
    "model_versions": "CROSS JOIN bench_versions",
    "model_version_tags": "CROSS JOIN bench_versions",
}
_CHANGED = {
    ("registered_model_aliases", "version"): ":versions",
    ("model_versions", "version"): "number",
    ("model_version_tags", "version"): "number",
}


def fill(database: str, first: int, tasks: int, versions: int) -> None:
    """Insert tasks with versions, from `first` on: the rows that promotion has made, as often and under other names."""
    engine = sa.create_engine(database)
    meta = sa.MetaData()
    meta.reflect(engine, only=list(_COPIES))
    names = sa.Table("bench_names", sa.MetaData(), sa.Column("name", sa.String(256), primary_key=True))
    numbers = sa.Table("bench_versions", names.metadata, sa.Column("number", sa.Integer, primary_key=True))
    own = {"task": TASK.name, "versions": versions}
    with engine.begin() as connection:
        names.metadata.create_all(connection)
        connection.execute(names.insert(), [{"name": f"task-{number:06d}"} for number in range(first, tasks)])
        connection.execute(numbers.insert(), [{"number": number} for number in range(1, versions + 1)])
        for table, join in _COPIES.items():
            columns = [column.name for column in meta.tables[table].columns]
            chosen = [_CHANGED.get((table, c), "copy.name" if c == "name" else f"{table}.{c}") for c in columns]
            copies = f"FROM {table} CROSS JOIN bench_names AS copy {join} WHERE {table}.name = :task"
            asked = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(chosen)} {copies}"
            connection.execute(sa.text(asked), {key: own[key] for key in own if f":{key}" in asked})
        names.metadata.drop_all(connection)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ANALYZE"))
    engine.dispose()


# ---- measuring -------------------------------------------------------------------------------------------------------
def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call in milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


@contextlib.contextmanager
def elsewhere(home: Path) -> Iterator[None]:
    """Be on a machine with this state folder."""
    before = os.environ["LORAXS_HOME"]
    os.environ["LORAXS_HOME"] = str(home)
    try:
        yield
    finally:
        os.environ["LORAXS_HOME"] = before


def measure(store: str, uri: str, tasks: int, versions: int, folder: Path) -> Row:
    """Measure one store as it stands."""
    cache = folder / f"cache-{time.monotonic_ns()}"
    pull(TASK.name, uri=uri, cache=cache)
    time.sleep(0.2)
    pull(TASK.name, uri=uri, cache=cache)

    def cold() -> None:
        pull(TASK.name, uri=uri, cache=cache / str(time.monotonic_ns()))

    def bare() -> None:
        with elsewhere(folder / f"home-{time.monotonic_ns()}"):
            pull(TASK.name, uri=uri)

    def run(*verb: str) -> None:
        command = [sys.executable, "-m", "loraxs_search", *verb, "--tracking-uri", uri]
        subprocess.run(command, check=True, capture_output=True)

    def run_bare() -> None:
        with elsewhere(folder / f"home-{time.monotonic_ns()}"):
            run("pull", TASK.name)

    run("pull", TASK.name)
    return {
        "store": store,
        "tasks": tasks,
        "versions": tasks * versions,
        "cached_ms": median_ms(lambda: pull(TASK.name, uri=uri, cache=cache), 20),
        "cold_ms": median_ms(cold, 5),
        "factors_ms": median_ms(bare, 5),
        "ls_page_ms": median_ms(lambda: Registry(uri).summaries(limit=100), 5),
        "ls_ms": median_ms(lambda: Registry(uri).summaries(), 1 if tasks > 1000 else 5),
        "command_s": median_ms(lambda: run("pull", TASK.name), 5) / 1000,
        "command_factors_s": median_ms(run_bare, 5) / 1000,
        "ls_command_s": median_ms(lambda: run("ls", "--limit", "100"), 5) / 1000,
    }


@contextlib.contextmanager
def open_store(kind: str, place: Path) -> Iterator[tuple[str, str]]:
    """Make a store; yield the address to pull from, and that of its database."""
    database = f"sqlite:///{place / 'mlflow.db'}"
    if kind == "embedded":
        ensure_store(database)
        yield database, database
        return
    of_its_own = postgres(place) if kind == "postgres-server" else contextlib.nullcontext((database, None))
    with of_its_own as (found, _), MlflowServer(place, found) as server:
        yield server.uri, found


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| {' | '.join(rows[0])} |"
    yield f"|---{'|--:' * (len(rows[0]) - 1)}|"
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row.values()]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[0, 100, 10_000], help="sizes of registry to measure")
    parser.add_argument("--versions", type=int, default=5, help="of each task")
    parser.add_argument("--stores", nargs="+", default=["embedded", "sqlite-server", "postgres-server"])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["LORAXS_HOME"] = str(Path(name) / "home")
        for kind in options.stores:
            place = Path(name) / kind
            place.mkdir()
            with open_store(kind, place) as (uri, database):
                promoted(uri, place / "adapter")
                before = 0
                for tasks in options.tasks:
                    if tasks > before:
                        fill(database, before, tasks, options.versions)
                    before = tasks
                    rows.append(measure(kind, uri, tasks, options.versions, place))
    print("\n".join(table(rows)))
    script.keep_numbers(options, rows)


if __name__ == "__main__":
    main()
