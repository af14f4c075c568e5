"""A team's key: what it did not sign under the name that was asked for is not pulled, nor what is older than seen."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loraxs_search.errors import IntegrityError, RegistryError, TrackingError
from loraxs_search.records import PromotionRule
from loraxs_search.registry import Registry, pull, verify
from loraxs_search.registry._signing import ENV_KEY, FILE, SEQUENCE, SeenSequences, check_signature, sign
from loraxs_search.registry._versions import CANDIDATE, DECISION, adapter_tag
from loraxs_search.registry.names import AdapterName, Resolved
from loraxs_search.registry.reader import RegistryReader
from loraxs_search.tracking.store import connect

KEY = "a key of the team's own"
RULE = PromotionRule(confidence=0)  # no test rows are needed


@pytest.fixture
def key(tmp_path, monkeypatch):
    def use(content: str | None = KEY):
        if content is None:
            monkeypatch.delenv(ENV_KEY, raising=False)
        else:
            (tmp_path / "key").write_text(content)
            monkeypatch.setenv(ENV_KEY, str(tmp_path / "key"))

    return use


@pytest.fixture
def promote(store_uri, task, candidate, make_folder):
    def promote(trial_id="t0", accuracy=0.8, base=""):
        folders = {trial_id: make_folder(trial_id)}
        return Registry(store_uri).promote(RULE, task, [candidate(trial_id, accuracy, base_model=base)], folders)

    return promote


@pytest.fixture
def go_elsewhere(monkeypatch, tmp_path):
    """Go to another machine: another home."""

    def go(name="elsewhere"):
        monkeypatch.setenv("LORAXS_HOME", str(tmp_path / name))

    return go


def pulled(uri: str, name: str = "movie-reviews", **where) -> str:
    return verify(pull(name, uri=uri, **where)).trial_id


def tags(uri: str, version: int = 1) -> dict[str, str]:
    return connect(uri).get_model_version("movie-reviews", str(version)).tags


def alias(uri: str, version: int, name: str = "champion") -> None:
    """What whoever can write to the registry can do."""
    connect(uri).set_registered_model_alias("movie-reviews", name, str(version))


# ---- what is signed --------------------------------------------------------------------------------------------------
def test_what_the_team_signed_is_pulled(key, promote, store_uri):
    key()
    promote()
    assert pulled(store_uri) == pulled(store_uri) == "t0"
    key(None)
    assert pulled(store_uri) == "t0"  # who has no key asks for no signature


@pytest.mark.parametrize("cached", [False, True])
def test_unsigned_and_foreign_adapters_are_refused_cached_or_not(key, promote, store_uri, cached):
    key(None)
    promote()
    if cached:
        pull("movie-reviews", uri=store_uri)
    key()
    with pytest.raises(IntegrityError, match="but it has none"):
        pull("movie-reviews", uri=store_uri)
    connect(store_uri).set_model_version_tag("movie-reviews", "1", "loraxs.signature.champion", f"1 {'0' * 64}")
    with pytest.raises(IntegrityError, match="of another key"):
        pull("movie-reviews", uri=store_uri)


def test_a_signature_fits_one_key_and_one_statement(key):
    key()
    said = {"task": "task", "alias": "champion", "version": 3, "sequence": 7, "digest": "digest"}
    signature = sign(**said)

    def check(task="task", name="champion", version=3, digest="digest", signature=signature):
        meaning = Resolved(digest, version, {"champion": signature, "tiny": signature})
        return check_signature(AdapterName(task, name), meaning)

    assert check() == 7
    for other in (
        {"task": "other"},
        {"name": "tiny"},
        {"version": 4},
        {"digest": "other"},
        {"signature": signature.replace("7", "8", 1)},
        {"signature": f"07 {signature[2:]}"},
        {"signature": f"{'9' * 5000} {signature[2:]}"},
        {"signature": ""},
    ):
        with pytest.raises(IntegrityError):
            check(**other)
    key("another key, as long as it")
    with pytest.raises(IntegrityError):
        check()


def test_a_key_that_is_none_is_said(key, tmp_path):
    statement = ("task", "champion", 1, 1, "digest")
    key("short")
    with pytest.raises(RegistryError, match="at least 16 bytes"):
        sign(*statement)
    (tmp_path / "key").unlink()
    with pytest.raises(RegistryError, match="must be readable"):
        sign(*statement)


def test_a_promotion_that_fails_before_the_alias_moves_leaves_the_champion_as_it_was(
    key, promote, store_uri, killed_at, fresh_home
):
    key()
    promote("t0", 0.8)
    with killed_at("set_registered_model_alias"):
        promote("t1", 0.9)
    assert pulled(store_uri) == "t0"


def test_without_a_key_nothing_is_signed_or_kept(key, promote, store_uri, fresh_home):
    key(None)
    promote()
    promote("t1", 0.9)
    pull("movie-reviews", uri=store_uri)
    Registry(store_uri).rollback("movie-reviews")
    assert pulled(store_uri) == "t0"
    assert not [name for version in (1, 2) for name in tags(store_uri, version) if "signature" in name]
    assert SEQUENCE not in connect(store_uri).get_registered_model("movie-reviews").tags
    assert not (fresh_home / FILE).exists()


# ---- what was asked for ----------------------------------------------------------------------------------------------
class _Liar(BaseHTTPRequestHandler):
    """A server that has one answer, whatever it is asked for."""

    answer: bytes

    def do_GET(self) -> None:
        calls = ("registered-models/alias", "registered-models/get", "model-versions/get")
        asked = any(call in self.path for call in calls)
        self.send_response(200 if asked or self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(self.answer if asked else b"")

    def log_message(self, *_) -> None:
        pass


def listed(tags):
    """Tags as a server lists them."""
    return [{"key": key, "value": value} for key, value in tags.items()]


@pytest.mark.parametrize("asked", ["movie-reviews", "movie-reviews:1"])
def test_what_the_team_signed_for_another_task_is_refused(
    key, task, candidate, make_folder, store_uri, monkeypatch, asked
):
    import dataclasses

    key()
    spam = dataclasses.replace(task, name="spam")
    folder = make_folder("t0", task=spam)
    Registry(store_uri).promote(RULE, spam, [candidate("t0", task="spam")], {"t0": folder})
    version, model = connect(store_uri).get_model_version("spam", "1"), connect(store_uri).get_registered_model("spam")
    fields = ("name", "version", "source", "run_id", "creation_timestamp")
    told = {name: getattr(version, name) for name in fields} | {"tags": listed(version.tags)}
    answer = {"model_version": told, "registered_model": {"name": "spam", "tags": listed(model.tags)}}
    monkeypatch.setattr(_Liar, "answer", json.dumps(answer).encode(), raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Liar) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(IntegrityError, match=f"`signature` of {asked}"):
            pull(asked, uri=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_champion_of_one_base_is_not_the_champion(key, promote, store_uri):
    key()
    promote("t0", 0.9, "org/Tiny")
    promote("t1", 0.7, "org/Large")
    assert pulled(store_uri, "movie-reviews@champion-large") == "t1"
    alias(store_uri, 2)
    with pytest.raises(IntegrityError, match="champion-large"):
        pull("movie-reviews", uri=store_uri)


def test_a_version_is_pulled_by_its_number_however_old(key, promote, store_uri):
    key()
    promote()
    promote("t1", 0.9)
    assert pulled(store_uri) == "t1"
    assert pulled(store_uri, "movie-reviews:1") == "t0"
    connect(store_uri).delete_model_version_tag("movie-reviews", "1", "loraxs.signature.champion")
    with pytest.raises(IntegrityError, match="but it has none"):
        pull("movie-reviews:1", uri=store_uri)


# ---- what is older than seen -----------------------------------------------------------------------------------------
def test_an_old_champion_that_was_put_back_is_refused_by_who_saw_the_new_one(
    key, promote, store_uri, go_elsewhere, fresh_home
):
    key()
    promote()
    assert pulled(store_uri) == "t0"
    promote("t1", 0.9)
    go_elsewhere()
    assert pulled(store_uri) == "t1"
    alias(store_uri, 1)
    with pytest.raises(IntegrityError, match=r"2, .*1") as older:
        pull("movie-reviews", uri=store_uri)
    assert f"elsewhere/{FILE}" in str(older.value.hint)
    go_elsewhere("fresh")
    assert pulled(store_uri) == "t0", "who never saw the new one cannot know"


def test_a_rollback_is_signed_and_rises(key, promote, store_uri, go_elsewhere):
    key()
    promote("t0", 0.8, "org/Tiny")
    promote("t1", 0.9, "org/Tiny")
    go_elsewhere()
    assert pulled(store_uri) == pulled(store_uri, "movie-reviews@champion-tiny") == "t1"
    Registry(store_uri).rollback("movie-reviews")
    assert pulled(store_uri) == pulled(store_uri, "movie-reviews@champion-tiny") == "t0"
    assert tags(store_uri)["loraxs.signature.champion"].startswith("3 ")
    alias(store_uri, 2)
    with pytest.raises(IntegrityError, match="at least 3"):
        pull("movie-reviews", uri=store_uri)


def test_what_a_name_last_meant_here_is_checked_while_the_registry_is_away(key, promote, store_uri, fresh_home):
    key()
    promote()
    pull("movie-reviews", uri=store_uri)
    names, away = fresh_home / "adapters" / "names.json", "http://127.0.0.1:9"
    names.write_text(names.read_text().replace(store_uri, away))
    assert pulled(away) == "t0"
    SeenSequences(away).accept("movie-reviews", "champion", 5, least=0)
    with pytest.raises(TrackingError):
        pull("movie-reviews", uri=away)


def test_an_adapter_that_is_replaced_while_it_is_asked_for_is_no_forgery(key, promote, store_uri, monkeypatch):
    key()
    promote()
    resolve = RegistryReader.resolve

    def slow(reader, name):
        found = resolve(reader, name)
        promote("t1", 0.9)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(RegistryReader, "resolve", slow)
        assert pulled(store_uri) == "t0", "the one that it was when it was asked for"
    assert pulled(store_uri) == "t1"
    alias(store_uri, 1)
    with pytest.raises(IntegrityError, match="at least 2"):
        pull("movie-reviews", uri=store_uri)


@pytest.mark.parametrize("count", ["", "no number", "-3", "9" * 4500])
def test_a_registry_that_was_set_back_counts_on_from_what_the_promoter_saw(key, promote, store_uri, count):
    key()
    promote()
    SeenSequences(store_uri).accept("movie-reviews", "champion", 40, least=0)
    connect(store_uri).set_registered_model_tag("movie-reviews", SEQUENCE, count)
    promote("t1", 0.9)
    assert pulled(store_uri) == "t1"
    assert tags(store_uri, 2)["loraxs.signature.champion"].startswith("41 ")


def test_a_removed_champion_leaves_the_count(key, promote, store_uri):
    key()
    promote()
    assert pulled(store_uri) == "t0"
    Registry(store_uri).remove("movie-reviews:1", forced=True)
    promote("t1", 0.7)
    assert pulled(store_uri) == "t1"


def test_the_highest_number_stays_whoever_comes_last(store_uri, fresh_home):
    seen = SeenSequences(store_uri)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: seen.accept("t", "champion", number, least=0), [3, 50, 7, 50, 1, 49, 12, 50]))
    assert seen.highest("t", "champion") == 50
    assert seen.highest("t", "champion-tiny") == 0
    (fresh_home / FILE).write_text("[cut sho")
    with pytest.raises(IntegrityError, match="is damaged"):
        seen.accept("t", "champion", 51, least=0)


# ---- what is signed anew ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("forged", ["1 \u00fc\u03b1", "\u0661 " + "0" * 64, "1"])
def test_a_signature_that_is_no_plain_text_is_refused_as_any_forged_one(key, promote, store_uri, forged):
    key()
    promote("t0", 0.8)
    promote("t1", 0.9)
    client = connect(store_uri)
    for version in ("1", "2"):
        client.set_model_version_tag("movie-reviews", version, "loraxs.signature.champion", forged)
    with pytest.raises(IntegrityError, match="made with the key"):
        pulled(store_uri)
    with pytest.raises(IntegrityError, match="signed with the key"):
        Registry(store_uri).rollback("movie-reviews")
    with pytest.raises(IntegrityError, match="made with the key"):
        check_signature(AdapterName("movie-reviews"), Resolved("0" * 64, 2, {"champion": f"{forged}\ud800"}))


def test_what_only_the_registry_vouches_for_is_never_signed(key, promote, store_uri):
    key(None)
    promote()
    promote("t1", 0.9)
    key()
    for version in (1, 2):
        with pytest.raises(IntegrityError, match="signed with the key") as unsigned:
            Registry(store_uri).rollback("movie-reviews", version)
        assert "loraxs-search promote STUDY" in str(unsigned.value.hint)


def test_promoting_again_with_the_key_signs_the_champion_from_its_own_files(
    key, promote, store_uri, task, candidate, tmp_path
):
    key(None)
    promote("t0", 0.8, "org/Tiny")
    key()
    own, folders = candidate("t0", 0.8, base_model="org/Tiny"), {"t0": tmp_path / "made" / "t0"}
    digest = tags(store_uri)["loraxs.digest"]
    client = connect(store_uri)
    for kind in (CANDIDATE, DECISION):  # a liar moves these too
        record = client.get_registered_model("movie-reviews").tags[adapter_tag(digest, kind)]
        client.set_registered_model_tag("movie-reviews", adapter_tag("0" * 64, kind), record)
    client.set_model_version_tag("movie-reviews", "1", "loraxs.digest", "0" * 64)
    Registry(store_uri).promote(RULE, task, [own], folders)
    with pytest.raises(IntegrityError, match="but it has none"):
        pull("movie-reviews", uri=store_uri)
    connect(store_uri).set_model_version_tag("movie-reviews", "1", "loraxs.digest", digest)
    decision, _ = Registry(store_uri).promote(RULE, task, [own], folders)
    assert not decision.promoted
    assert pulled(store_uri) == pulled(store_uri, "movie-reviews@champion-tiny") == "t0"
    before = tags(store_uri)
    Registry(store_uri).promote(RULE, task, [own], folders)
    assert tags(store_uri) == before, "signed once"


def test_a_foreign_trial_of_the_same_name_is_not_signed(key, promote, store_uri, task, candidate, make_folder):
    key(None)
    promote()
    key()
    stranger = candidate("t0", 0.7, study_id="another study's")
    Registry(store_uri).promote(RULE, task, [stranger], {"t0": Path("/nowhere")})
    with pytest.raises(IntegrityError, match="but it has none"):
        pull("movie-reviews", uri=store_uri)
