"""What a server of adapters answers in a second, and how long a client waits.

    python tests/benchmarks/bench_serve.py --json serve.json
    python tests/benchmarks/bench_serve.py --shows writing decisions

Clients are another process that asks one text at a time over connections that stay open; each request names an adapter
drawn at random. Adapters are random, of rank 8 on all linear layers of the quickstart's base, made in memory, and texts
are the shipped film reviews. `front` is the same application over an engine that answers without computing: the CPU
time of the server's process for each request is what HTTP costs. `peft` is the same application over PEFT's own mixed
batch of plain LoRA adapters. `writing` asks SmolLM2 for 64 tokens with eight adapters, at once and one after another.
`decisions` asks one client's k questions of one text, which k of 1,000 adapters answer, in one request to
`/v1/decisions`; against k rows of that text in one request to `/classify`, and in k requests at once to k adapters.
`--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import script
import torch
from peft import LoraConfig, get_peft_model

from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.cli.serve import listen
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.records.trial import Hyperparameters
from loraxs_search.search_space.load import load_space
from loraxs_search.serve.app import Server
from loraxs_search.serve.bodies import Limits
from loraxs_search.serve.engine import Job
from loraxs_search.serve.served_models import ServedAdapter, ServedModels
from loraxs_search.tasks.kinds import ForwardRequest, kind_of
from loraxs_search.tasks.prepared import load_data

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `support`, which the suite shares

from support.toys import manifest_of

RANK, PORT_WAIT_S = 8, 0.05


class RandomModels(ServedModels):
    """Adapters of random numbers under the names `adapter-N`, without a registry."""

    def __init__(self, space_name: str, count: int) -> None:
        space = load_space(space_name)
        base = locate(space.base_model)
        self.tasks, self.uri, self.base = (), "", space.base_model
        self.registry_error, self.num_switches = None, 0
        self.bank = AdapterBank(base, task_model=kind_of(space.task).model)
        modules = [module.name for module in linear_modules(base, kind_of(space.task).model)]
        names = [f"adapter-{number}" for number in range(count)]
        config = LoraXSConfig(r=RANK, target_modules=modules)
        width = load_model(base, kind_of(space.task).model).config.hidden_size
        for name in names:
            found = {f"base_model.model.{module}.loraxs_R": torch.randn(RANK, RANK) * 0.05 for module in modules}
            if self.bank.has_head:
                found["base_model.model.classifier.weight"] = torch.randn(2, width) * 0.05
                found["base_model.model.classifier.bias"] = torch.zeros(2)
            self.bank.add(name, config, space.task, found)
        hyper = Hyperparameters(rank=RANK, target_modules=(), learning_rate=1e-3, head_learning_rate=1e-3)
        manifest, kind = manifest_of(space.task, space.base_model, hyper), kind_of(space.task)
        self._adapters = {name: ServedAdapter(name, 1, name, Path(), manifest, kind) for name in names}

    def find(self, name: str) -> ServedAdapter | None:
        return self._adapters.get(name)

    def served_tasks(self) -> dict[str, ServedAdapter]:
        return self._adapters

    def refresh(self) -> None:
        pass


def _front(server: Server) -> None:
    """Have an engine answer with zeros, at once."""

    def submit(jobs: Sequence[Job]) -> None:
        for job in jobs:
            requests = job.asking(server.engine._source)
            request = next(requests)
            assert isinstance(request, ForwardRequest)
            try:
                requests.send((torch.zeros(len(request.rows), 2),))
            except StopIteration as end:
                job.result.set_result(end.value)

    server.engine.submit = submit  # type: ignore[method-assign]


def _peft(server: Server, count: int) -> None:
    """Have an engine compute with PEFT's mixed batch of plain LoRA adapters of the same rank."""
    models = server.models
    base, task = models.bank.base, load_space("movie_reviews").task
    modules = [module.name for module in linear_modules(base, kind_of(task).model)]
    config = LoraConfig(r=RANK, target_modules=modules, init_lora_weights=False, task_type="SEQ_CLS")
    model = get_peft_model(load_model(base, kind_of(task).model), config, adapter_name="adapter-0").eval()
    for number in range(1, count):
        model.add_adapter(f"adapter-{number}", config)
    model.eval()
    source = server.engine._source

    def read(reads: Mapping[Job, ForwardRequest]) -> dict[Job, Any]:
        jobs = list(reads)
        rows = [reads[job].source for job in jobs]
        padded = source.tokenizer.pad(
            {"input_ids": [row.ids.row(0).tolist() for row in rows]},  # type: ignore[union-attr]
            return_tensors="pt",
        )
        names = [job.adapter.digest if job.adapter else "" for job in jobs]
        with torch.inference_mode():
            logits = model(**padded, adapter_names=names).logits.float()
        return {job: (logits[row : row + 1],) for row, job in enumerate(jobs)}

    server.engine._read = read  # type: ignore[method-assign]


def serve(way: str, count: int, pipe: Connection, options: argparse.Namespace) -> None:
    """Serve until told to stop; the body of a process."""
    import uvicorn

    torch.manual_seed(0)
    space = "movie_reviews_text" if way == "writing" else "movie_reviews"
    server = Server(RandomModels(space, count), limits=Limits(rows_at_once=options.rows))
    if way == "front":
        _front(server)
    if way == "peft":
        _peft(server, count)
    listening = listen("127.0.0.1", 0)
    own = uvicorn.Server(uvicorn.Config(server.app, log_level="warning", access_log=False, timeout_keep_alive=600))
    pipe.send(listening.getsockname()[1])
    own.run(sockets=[listening])


# ---- clients ---------------------------------------------------------------------------------------------------------
class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, path: str, body: Any) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        if not hasattr(self, "_reader"):
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
        self._writer.write(f"{head}\r\n\r\n".encode() + content)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        return int(lines[0].split()[1]), answer


async def _load(port: int, clients: int, seconds: float, bodies: Sequence[Any]) -> list[tuple[float, int]]:
    """Return how long each answer took, and its status."""
    found, end = list[tuple[float, int]](), time.perf_counter() + seconds

    async def one(seed: int) -> None:
        client, draw = Client(port), random.Random(seed)
        while time.perf_counter() < end:
            started = time.perf_counter()
            status, _ = await client.ask("/classify", draw.choice(bodies))
            found.append((time.perf_counter() - started, status))

    await asyncio.gather(*(one(seed) for seed in range(clients)))
    return found


class Serving:
    """A server in another process, for as long as the context is open."""

    def __init__(self, way: str, count: int, options: argparse.Namespace) -> None:
        self._pipe, other = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=serve, args=(way, count, other, options), daemon=True)

    def __enter__(self) -> Serving:
        self._process.start()
        self.port: int = self._pipe.recv()
        while True:
            with contextlib.suppress(OSError):
                asyncio.run(Client(self.port).ask("/classify", {}))
                break
            time.sleep(PORT_WAIT_S)
        self._cpu = psutil.Process(self._process.pid)
        return self

    def cpu_s(self) -> float:
        times = self._cpu.cpu_times()
        return times.user + times.system

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def classifying(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each way with each number of adapters and clients, in turn."""
    ways = [("bank", count) for count in options.adapters] + [("peft", options.peft_adapters), ("front", 1)]
    rows, texts = [], load_data(load_space("movie_reviews").task)["test"].texts[:512]
    for way, count in ways:
        draw = random.Random(0)
        bodies = [{"model": f"adapter-{draw.randrange(count)}", "input": text} for text in texts for _ in range(4)]
        with Serving(way, count, options) as server:
            for clients in options.clients:
                asyncio.run(_load(server.port, clients, options.seconds / 4, bodies))
                before, started = server.cpu_s(), time.perf_counter()
                found = asyncio.run(_load(server.port, clients, options.seconds, bodies))
                seconds, cpu = time.perf_counter() - started, server.cpu_s() - before
                waits = sorted(took for took, _ in found)
                row = {
                    "way": way,
                    "adapters": count,
                    "clients": clients,
                    "requests_per_s": len(found) / seconds,
                    "p50_ms": 1e3 * statistics.median(waits),
                    "p95_ms": 1e3 * waits[int(0.95 * (len(waits) - 1))],
                    "cpu_ms": 1e3 * cpu / len(found),
                    "failed": sum(status != 200 for _, status in found),
                }
                rows.append(row)
                print(
                    f"{way:6} {count:6} adapters {clients:4} clients: {row['requests_per_s']:7.1f} requests/s,"
                    f" p50 {row['p50_ms']:.1f} ms, p95 {row['p95_ms']:.1f} ms, {row['cpu_ms']:.2f} ms of CPU,"
                    f" {row['failed']} failed",
                    flush=True,
                )
    return rows


async def _written(port: int, bodies: Sequence[Any], at_once: bool) -> int:
    """Return how many tokens the answers have."""
    answers = list[tuple[int, bytes]]()
    for asked in [bodies] if at_once else [[body] for body in bodies]:
        answers += await asyncio.gather(*(Client(port).ask("/v1/completions", body) for body in asked))
    return sum(json.loads(answer)["usage"]["completion_tokens"] for _, answer in answers)


def writing(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure eight adapters that write at once, and one after another, in turn."""
    texts = load_data(load_space("movie_reviews").task)["test"].texts
    rows, rates = list[dict[str, Any]](), dict[str, list[float]]()
    with Serving("writing", 8, options) as server:
        for round_ in range(options.rounds + 1):
            prompts = [f"Review: {text}\nSentiment:" for text in texts[8 * round_ : 8 * round_ + 8]]
            bodies = [
                {"model": f"adapter-{n}", "prompt": prompt, "max_tokens": options.tokens, "temperature": 0}
                for n, prompt in enumerate(prompts)
            ]
            for at_once, way in ((True, "at once"), (False, "in turn")):
                started = time.perf_counter()
                rate = asyncio.run(_written(server.port, bodies, at_once)) / (time.perf_counter() - started)
                if round_:
                    rates.setdefault(way, []).append(rate)
                    rows.append({"way": way, "tokens_per_s": rate, "load": os.getloadavg()[0]})
                    print(f"{way}: {rate:.1f} tokens/s, load {os.getloadavg()[0]:.1f}", flush=True)
    medians = {way: statistics.median(own) for way, own in rates.items()}
    print(f"eight adapters at once: {medians['at once'] / medians['in turn']:.2f} times one after another")
    return rows


def decisions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure k questions in one request, k rows in one, and k requests at once, in turn."""
    texts = load_data(load_space("movie_reviews").task)["test"].texts
    rows, draw = list[dict[str, Any]](), random.Random(0)
    choices = [{"value": label} for label in load_space("movie_reviews").task.labels]
    ways = ("questions", "rows", "requests")
    with Serving("bank", options.tasks, options) as server:

        async def measure(count: int) -> dict[str, list[float]]:
            clients, took = [Client(server.port) for _ in range(count)], dict[str, list[float]]()
            for round_ in range(options.repeats + 2):
                text = texts[round_ % len(texts)]
                names = [f"adapter-{number}" for number in draw.sample(range(options.tasks), count)]
                asked = [{"type": "choice", "instructions": "?", "name": n, "choices": choices} for n in names]
                bodies: dict[str, list[tuple[str, Any]]] = {
                    "questions": [("/v1/decisions", {"model": "loraxs", "input": text, "questions": asked})],
                    "rows": [("/classify", {"model": names[0], "input": [text] * count})],
                    "requests": [("/classify", {"model": name, "input": text}) for name in names],
                }
                for way in draw.sample(ways, len(ways)):
                    started = time.perf_counter()
                    own = zip(clients, bodies[way], strict=False)
                    found = await asyncio.gather(*(client.ask(*body) for client, body in own))
                    assert all(status == 200 and b"refusal" not in answer for status, answer in found), found[0]
                    if round_ > 1:  # the first ones warm up
                        took.setdefault(way, []).append(1e3 * (time.perf_counter() - started))
            return took

        for count in options.questions:
            took = {way: statistics.median(own) for way, own in asyncio.run(measure(count)).items()}
            ratios = {f"to_{way}": took["questions"] / took[way] for way in ways[1:]}
            rows.append({"questions": count, **{f"{way}_ms": ms for way, ms in took.items()}, **ratios})
            shown = ", ".join(f"{name} {value:.3g}" for name, value in rows[-1].items())
            print(f"{shown}, load {os.getloadavg()[0]:.1f}", flush=True)
    return rows


def main() -> None:
    parser = script.parser(__doc__)
    shows = {"classifying": classifying, "writing": writing, "decisions": decisions}
    parser.add_argument("--shows", nargs="+", default=["classifying"], choices=list(shows))
    parser.add_argument("--tasks", type=int, default=1000, help="adapters in memory that questions are of")
    parser.add_argument("--questions", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=30, help="times that each number of questions is asked")
    parser.add_argument("--adapters", nargs="+", type=int, default=[1, 1024, 10_000])
    parser.add_argument("--peft-adapters", type=int, default=64)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rows", type=int, default=64, help="rows of a pass, at most")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer that is written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.adapters, options.peft_adapters, options.clients, options.seconds = [4], 2, [2], 0.5
        options.tokens, options.rounds, options.tasks, options.questions, options.repeats = 4, 1, 4, [1, 4], 1
    found = {show: shows[show](options) for show in options.shows}
    script.keep_numbers(options, found)


if __name__ == "__main__":
    main()
