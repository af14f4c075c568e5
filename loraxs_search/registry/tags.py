"""Tags of a task's registered model that hold records: MLflow's pages hide those that begin with `mlflow.`.

They show every tag of a version, so the records of a version are kept here too, by the adapter's digest.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraxs_search.records import Candidate, Decision, from_json

_HIDDEN = "mlflow."
DECISIONS = f"{_HIDDEN}loraxs.decision."  # the time of each decision stands behind it
SUMMARY = f"{_HIDDEN}loraxs.champion"
PAGE = f"{_HIDDEN}loraxs.page"  # sha256 of the description that we wrote
_ADAPTER = f"{_HIDDEN}loraxs.adapter."
CANDIDATE, DECISION = "candidate", "decision"


def adapter_tag(digest: str, kind: str) -> str:
    """Return the tag that holds the `CANDIDATE` or `DECISION` of an adapter."""
    return f"{_ADAPTER}{digest[:32]}.{kind}"


def adapter_records(version: Mapping[str, str], model: Mapping[str, str], digest: str) -> tuple[Candidate, Decision]:
    """Read the records of a version; version 0.1 kept them among the version's own tags.

    Args:
        version: Its tags.
        model: Those of the registered model.
    Raises:
        KeyError, ValueError: somebody else registered it.
    """

    def text(kind: str) -> str:
        key = adapter_tag(digest, kind)
        return model[key] if key in model else version[f"loraxs.{kind}"]

    return from_json(Candidate, text(CANDIDATE)), from_json(Decision, text(DECISION))


def record(tags: Mapping[str, str], name: str) -> str:
    """Return the record under `name`, or under the name that version 0.1 gave it, in sight.

    Raises:
        KeyError: there is neither.
    """
    return tags[name] if name in tags else tags[name.removeprefix(_HIDDEN)]


def named_records(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the records whose names begin so, by today's names, those of version 0.1 too; in order of their names."""
    old = prefix.removeprefix(_HIDDEN)
    found = {name: text for name, text in tags.items() if name.startswith(prefix)}
    found |= {f"{_HIDDEN}{name}": text for name, text in tags.items() if name.startswith(old)}
    return dict(sorted(found.items()))
