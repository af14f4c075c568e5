"""Rows that are not answered surely are kept, each tenant's by itself, and answers are counted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from dataclasses import replace

import pytest
import requests

from loraxs_search.records.adapter import ClassReport, ClassScores, Prediction
from loraxs_search.records.task import DataSource, Task
from loraxs_search.scaffold.roles import Choices, guess_roles, read_table
from loraxs_search.serve.app import Server
from loraxs_search.serve.bodies import Limits
from loraxs_search.serve.kept_rows import KeptRows, is_sure
from loraxs_search.serve.served_models import ServedModels

from .conftest import running

TEXTS = [f"row {number} of a long film, or of a short one" for number in range(30)]
TENANTS = {key: hashlib.sha256(key.encode()).hexdigest()[:12] for key in ("sesame", "open")}


@pytest.fixture
def models(registry, encoder):
    return ServedModels(["task-2", "task-1"], uri=registry[0])


def ask(url, texts, key="", model="task-2"):
    headers = {"authorization": f"Bearer {key}"}
    response = requests.post(f"{url}/classify", json={"model": model, "input": texts}, headers=headers, timeout=60)
    assert response.ok, response.text
    return response.json()["data"]


def numbers(url):
    lines = requests.get(f"{url}/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_tenant_has_a_file_that_init_reads_once_labels_are_filled_in(models, tmp_path, monkeypatch):
    monkeypatch.setattr("loraxs_search.serve.app.is_sure", lambda answer: answer.text == TEXTS[0])
    with running(
        Server(models, keys=dict.fromkeys(TENANTS, frozenset[str]()), keep=(folder := tmp_path / "kept"))
    ) as url:
        answers = ask(url, TEXTS[:25], "sesame")
        ask(url, TEXTS[25:], "open")
        ask(url, TEXTS, "open", "task-1")  # a number is neither sure nor unsure
        choices = [{"value": f"label {number}"} for number in range(2)]
        question = {"type": "choice", "instructions": "which?", "choices": choices}
        body = {"model": "task-2", "input": "a decision", "questions": [question]}
        headers = {"authorization": "Bearer open"}
        assert requests.post(f"{url}/v1/decisions", json=body, headers=headers, timeout=60).ok
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {f"{tenant}/task-2.jsonl" for tenant in TENANTS.values()}
    assert [row["text"] for row in lines(folder / TENANTS["open"] / "task-2.jsonl")] == [*TEXTS[25:], "a decision"]
    path = folder / TENANTS["sesame"] / "task-2.jsonl"
    kept = lines(path)
    assert [row["text"] for row in kept] == TEXTS[1:25]
    assert [list(row["probabilities"].values()) for row in kept] == [one["probs"] for one in answers[1:]]
    assert {(row["task"], row["label"]) for row in kept} == {("task-2", None)}
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    labelled = [json.dumps({**row, "label": ("good", "bad")[number % 2]}) for number, row in enumerate(kept)]
    path.write_text("\n".join(labelled))
    roles, _ = guess_roles(read_table(path), Choices())
    assert (roles.texts, roles.label, set(roles.labels)) == (("text",), "label", {"good", "bad"})


@pytest.mark.parametrize("fault", ["full", "folder", "link", "disk"])
def test_what_cannot_be_kept_fails_no_request_and_is_logged_once(models, tmp_path, monkeypatch, caplog, fault):
    path, limit = tmp_path / "task-2.jsonl", 10**6
    if fault == "full":
        path.write_text("x" * 990)
        limit = 1000
    elif fault == "folder":
        path.mkdir()
    elif fault == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("{}\n")
        write = os.write

        def part(file: int, content: bytes) -> int:
            if len(content) < 50:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, content[: len(content) // 2])

        monkeypatch.setattr("loraxs_search.serve.kept_rows.os.write", part)
    before = path.read_text() if path.is_file() else ""
    kept, adapter = KeptRows(tmp_path, limit), models.find("task-2")
    for _ in range(2):
        kept.add(adapter, [((TEXTS[0],), Prediction(TEXTS[0], "label 0", 0.6, {"label 0": 0.6, "label 1": 0.4}))], None)
    kept.close()
    assert sum("no longer kept" in record.message for record in caplog.records) == 1
    assert (path.read_text() if path.is_file() else "") == before
    assert not (tmp_path / "elsewhere").exists()


def test_files_may_be_edited_and_taken_away_while_rows_are_kept(models, tmp_path, monkeypatch):
    class Inline:
        def __init__(self, *_: object) -> None: ...

        def submit(self, write, *given):
            write(*given)

    monkeypatch.setattr("loraxs_search.serve.kept_rows.ThreadPoolExecutor", Inline)
    kept, adapter = KeptRows(tmp_path / "kept", 1000), models.find("task-2")
    rows = [((TEXTS[0],), Prediction(TEXTS[0], "label 0", 0.6, {"label 0": 0.6, "label 1": 0.4}))]
    path = tmp_path / "kept" / "tenant" / "task-2.jsonl"
    for _ in range(10):
        kept.add(adapter, rows, "tenant")
    count = len(lines(path))
    assert 1 < count < 10
    path.write_text(path.read_text().splitlines()[0])  # without an end of line, as some editors leave it
    kept.add(adapter, rows, "tenant")
    assert len(lines(path)) == 2
    (tmp_path / "kept").rename(tmp_path / "taken")
    for _ in range(10):
        kept.add(adapter, rows, "tenant")
    assert len(lines(path)) == count
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_answers_are_counted_beside_the_shares_of_the_test_rows(models, monkeypatch):
    classes = tuple(ClassScores(f"label {number}", rows, None, None, None) for number, rows in enumerate((30, 10)))
    followed = models._names["task-2"]
    manifest = replace(followed.adapter.manifest, by_class=ClassReport(classes, ()))
    followed.adapter = replace(followed.adapter, manifest=manifest)
    monkeypatch.setattr("loraxs_search.serve.app._MAX_SERIES", 3)
    monkeypatch.setattr("loraxs_search.serve.app.is_sure", lambda answer: answer.text in TEXTS[:4])
    with running(Server(models, limits=Limits(rows_at_once=8))) as url:
        labels = [one["label"] for one in ask(url, TEXTS)]
        ask(url, TEXTS[0], model="task-1")
        ask(url, TEXTS[5], model="task-1")
        found = numbers(url)
    for label in set(labels):
        sure = labels[:4].count(label)
        for name, count in (("true", sure), ("false", labels.count(label) - sure)):
            assert found.get(f'loraxs_answers_total{{label="{label}",sure="{name}",task="task-2"}}', 0) == count
    total = sum(value for name, value in found.items() if name.startswith("loraxs_answers_total"))
    assert (total, sum(name.startswith("loraxs_answers_total") for name in found) <= 5) == (32, True)
    assert found['loraxs_test_share{label="label 0",task="task-2"}'] == 0.75
    assert found['loraxs_test_share{label="label 1",task="task-2"}'] == 0.25


def test_each_of_several_labels_is_counted(registry, encoder, base, make_adapter, tmp_path):
    scored = ("micro_f1", "maximize", ("micro_f1",))
    task = Task("tags", "multi-label", DataSource(), "text", "label", *scored, labels=("a", "b", "c"))
    encoder.promote(make_adapter(tmp_path / "tags", base, task=task, rank=4))
    with running(Server(ServedModels(["tags"], uri=registry[0]))) as url:
        labels = Counter("|".join(one["label"] for one in ask(url, TEXTS, model="tags")).split("|"))
        found = numbers(url)
    assert len(labels) > 1
    for label, count in labels.items():
        series = f'loraxs_answers_total{{label="{label}",sure="SURE",task="tags"}}'
        assert sum(found.get(series.replace("SURE", sure), 0) for sure in ("true", "false")) == count


def test_an_answer_is_sure_from_the_lowest_threshold_on():
    known = (None, {}, {0.8: False, 0.9: False}, {0.8: True, 0.9: False})
    assert [is_sure(Prediction("x", "a", 0.99, sure_at=own)) for own in known] == [False, False, False, True]
