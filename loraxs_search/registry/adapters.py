"""A version of a task's adapters as a record, and the tags it is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from loraxs_search.errors import RegistryError
from loraxs_search.records import Candidate, Decision, Manifest, Refit, to_json
from loraxs_search.registry._versions import EVIDENCE
from loraxs_search.registry.names import is_sha256
from loraxs_search.registry.tags import CANDIDATE, DECISION, adapter_records, adapter_tag

_MAX_TAG = 5000  # characters a registered model's tag may have in MLflow's tables
SIGNATURE = "loraxs.signature."  # of a version: with the alias that was signed behind it


@dataclass(frozen=True)
class RegisteredAdapter:
    """A version of a task's adapters.

    Args:
        digest: Content address of its folder, as `folder_digest` gives it.
        candidate: The scores it was promoted with.
        decision: Why it was.
        source: Where its files lie, as MLflow names it.
        evidence: sha256 of its answers to the test rows; None when there are none.
        signatures: Alias to what `signature.sign` has made for it.
        created_at: ISO 8601.
    """

    task: str
    version: int
    aliases: tuple[str, ...]
    digest: str
    candidate: Candidate
    decision: Decision
    source: str
    run_id: str | None = None
    evidence: str | None = None
    signatures: Mapping[str, str] = field(default_factory=dict)
    created_at: str = ""


def read_version(version: Any, model_tags: Mapping[str, str]) -> RegisteredAdapter:
    """Rebuild a record from MLflow's model version and the tags of its registered model.

    Raises:
        RegistryError: somebody else registered it.
    """
    tags = version.tags
    try:
        digest = _digest(tags["loraxs.digest"])
        candidate, decision = adapter_records(tags, model_tags, digest)
        return RegisteredAdapter(
            task=version.name,
            version=int(version.version),
            aliases=tuple(sorted(version.aliases)),
            digest=digest,
            candidate=candidate,
            decision=decision,
            source=version.source,
            run_id=version.run_id or None,
            evidence=tags.get(EVIDENCE),
            signatures={k.removeprefix(SIGNATURE): v for k, v in tags.items() if k.startswith(SIGNATURE)},
            created_at=datetime.fromtimestamp(int(version.creation_timestamp) / 1000, UTC).isoformat("T", "seconds"),
        )
    except (KeyError, ValueError) as error:
        raise RegistryError(
            f"Version {version.version} of {version.name} was not registered by loraxs-search: {error}.",
            hint="name another version, or promote an adapter of this task",
        ) from error


def _digest(tag: str) -> str:
    if not is_sha256(tag):  # it names a folder of the cache
        raise ValueError(f"`digest` must be 64 hex digits, but got {tag!r}")
    return tag


def version_tags(manifest: Manifest, candidate: Candidate, digest: str) -> dict[str, str]:
    """Return the tags of a new version: what people look for in the UI."""
    scores = {f"test.{name}": f"{value:.6g}" for name, value in candidate.test_metrics.items()}
    scores |= {f"validation.{name}": f"{value:.6g}" for name, value in candidate.validation_metrics.items()}
    return scores | {
        "loraxs.study": candidate.study,
        "trial_id": candidate.trial_id,
        "stored_bytes": str(candidate.stored_bytes),
        "loraxs.base_model": manifest.base_model.id,
        "loraxs.digest": digest,
    }


def record_tags(candidate: Candidate, decision: Decision, digest: str) -> dict[str, str]:
    """Return the tags of the registered model that hold the records of a new version."""
    return {adapter_tag(digest, CANDIDATE): _fitted(candidate), adapter_tag(digest, DECISION): fitted(decision)}


def _fitted(candidate: Candidate) -> str:
    """Return the candidate as JSON short enough for a tag: its own scores whole, what is beside them shortened."""
    text, limit = to_json(candidate), _MAX_TAG
    while len(text) > _MAX_TAG and limit > 1:
        limit //= 2
        text = to_json(_shortened(candidate, limit))
    return text


def _shortened(candidate: Candidate, limit: int) -> Candidate:
    """Cut texts to `limit` characters, and round and count off refits."""
    yardsticks = [
        replace(
            each,
            answer=each.answer[:limit] if isinstance(each.answer, str) else each.answer,
            failed=each.failed[:limit],
        )
        for each in candidate.yardsticks
    ]
    refits = [
        Refit(each.seed, {name: float(f"{x:.6g}") for name, x in each.validation_metrics.items()}, each.failed[:limit])
        for each in candidate.refits[: max(1, limit // 25)]
    ]
    earlier = candidate.earlier_finalists[: limit // 25]
    return replace(candidate, yardsticks=tuple(yardsticks), refits=tuple(refits), earlier_finalists=earlier)


def fitted(decision: Decision) -> str:
    """Return the decision as JSON short enough for a tag, the last reasons kept: they say what was decided."""
    text, short = to_json(decision), decision
    while len(text) > _MAX_TAG and (short.reasons or short.seen):
        short = replace(short, reasons=short.reasons[1:], seen=short.seen if short.reasons else short.seen[:-20])
        left_out = f"({len(decision.reasons) - len(short.reasons)} more reasons)"
        text = to_json(replace(short, reasons=(left_out, *short.reasons)))
    return text
