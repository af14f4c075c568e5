"""What a browser takes to compute a served task's answers itself, and what the same texts take on the server.

    python tests/benchmarks/bench_browser.py TASK --json browser.json

TASK is one of your registry that has two versions on one base: its champion is rolled back and forth. The server is a
process of its own with the command `serve`, and the browser Debian's Chromium, with one thread, on the same machine.
`first` is from the click on the switch to `Texts stay in this browser`: once before the server has made the graph, and
once in a new page after. `moved` is from the rollback to the first answer of the new champion in the browser.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import requests
from support.browsers import chromium

from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.registry import Registry
from loraxs_search.search_space import load_space
from loraxs_search.tasks.prepared import load_data

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_MOST_WAIT_MS = 300_000
_TIMED = """async ([model, texts, here]) => {
  const own = await import("./web/in_browser.mjs"), times = [];
  for (const text of texts) {
    const started = performance.now();
    await (here ? own.classify(model, [text], get) : ask("classify", { model, input: [text] }));
    times.push(performance.now() - started);
  }
  return times;
}"""
_DIGEST = """([model, text]) => import("./web/in_browser.mjs").then(
  (own) => own.classify(model, [text], get)).then((answer) => answer.system_fingerprint)"""


def _bytes(page: Page) -> dict[str, int]:
    """Keep adding up what a page's answers weigh, by what they are."""
    found: dict[str, int] = {}

    def add(response: Any) -> None:
        path = response.url.split("/", 3)[3]
        what = re.sub(r"onnx/.*", "files of /onnx", re.sub(r"onnx\?.*", "/onnx", path)) or "/"
        found[what] = found.get(what, 0) + int(response.headers.get("content-length", 0)) * (response.status == 200)

    page.on("response", add)
    return found


def _first(browser: Browser, url: str) -> tuple[Page, dict[str, Any]]:
    page = browser.new_context().new_page()
    moved = _bytes(page)
    page.goto(url)
    page.wait_for_selector("#model option", state="attached")
    started = time.perf_counter()
    page.click("#here")
    page.get_by_text("Texts stay in this browser.").wait_for(timeout=_MOST_WAIT_MS)
    return page, {"first_s": time.perf_counter() - started, "bytes": dict(moved)}


def _moved(page: Page, task: str, text: str) -> dict[str, Any]:
    registry, moved = Registry(resolve_uri()), _bytes(page)
    champion = registry.champion(task)
    assert champion is not None
    before = page.evaluate(_DIGEST, [task, text])
    registry.rollback(task, next(own.version for own in registry.versions(task) if own.version != champion.version))
    started = time.perf_counter()
    moved.clear()
    while page.evaluate(_DIGEST, [task, text]) == before:
        time.sleep(0.05)  # as a user who asks again and again
    return {"moved_s": time.perf_counter() - started, "bytes": dict(moved)}


def _wait(url: str) -> None:
    """Wait until a server that has said its address accepts requests."""
    while True:
        try:
            requests.get(f"{url}/ready", timeout=60).raise_for_status()
            return
        except requests.ConnectionError:
            time.sleep(0.05)


def measure(task: str, num_texts: int, moves: int) -> dict[str, Any]:
    """Return seconds, milliseconds and bytes."""
    texts = load_data(load_space("movie_reviews").task).rows["test"].texts[:num_texts]
    command = [sys.executable, "-m", "loraxs_search", "serve", task, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, chromium() as browser:
        assert server.stderr is not None
        try:
            (url,) = re.findall(r"http://\S+", server.stderr.readline())
            _wait(url)
            _, cold = _first(browser, url)
            page, warm = _first(browser, url)
            times = {name: page.evaluate(_TIMED, [task, texts, here]) for name, here in (("browser", 1), ("server", 0))}
            moved = [_moved(page, task, texts[0]) for _ in range(moves)]
        finally:
            server.terminate()
    timed = {f"{name}_ms": statistics.median(own) for name, own in times.items()}
    return {"cold": cold, "warm": warm, **timed, "moves": moved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--moves", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args()
    found = measure(args.task, args.texts, args.moves)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
