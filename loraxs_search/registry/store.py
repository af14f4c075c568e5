"""The registry: one registered model per task, a version per promoted adapter, the alias `champion` on one of them.

Promotion makes each champion comparable with the finalist first; then the rule decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import IntegrityError, LoraxsError, RegistryError
from loraxs_search.records import Candidate, Decision, KeptAnswers, PromotionRule, Task
from loraxs_search.registry import _decisions, _versions, factor_sets
from loraxs_search.registry._decisions import next_number
from loraxs_search.registry._mlflow import speaking
from loraxs_search.registry._versions import RegisteredAdapter, record_tags, version_tags
from loraxs_search.registry.changes import ChangingRegistry, now
from loraxs_search.registry.finalist import Criterion, FinalistChoice, choose, identity, key
from loraxs_search.registry.manifest import folder_digest, verify
from loraxs_search.registry.names import CHAMPION, check_task
from loraxs_search.registry.pages import summarise, version_page
from loraxs_search.registry.promotion import PromotionTest, Scored
from loraxs_search.registry.promotion_lock import Check
from loraxs_search.registry.test_set_reuse import ToleranceReference, find_tolerance_reference

if TYPE_CHECKING:
    from loraxs_search.registry.scored_rows import ScoredRows


@dataclass(frozen=True, eq=False)
class Rescored:
    """A champion scored anew, on the test rows that the finalist was scored on."""

    test_metrics: Mapping[str, float]
    data_fingerprint: str
    rows: ScoredRows
    test_fingerprint: str


Rescore = Callable[[RegisteredAdapter], Rescored]
ReadRows = Callable[[RegisteredAdapter], "ScoredRows | None"]


@dataclass(frozen=True)
class Beside:
    """What a decision needs beside candidates.

    Args:
        study: Whose candidates they are, for the record where there are none.
        answers: Of the study's baselines to the test rows, by name.
        seen: Keys of other finalists that have answered the test rows: each counts as a comparison on them.
        reasons: What the decision is to say first: that its rule is another than the study's.
    """

    study: str = ""
    answers: Mapping[str, KeptAnswers] = field(default_factory=dict)
    seen: Sequence[str] = ()
    reasons: tuple[str, ...] = ()


def comparable(champion: RegisteredAdapter, finalist: Scored, rescore: Rescore | None, read_rows: ReadRows) -> Scored:
    """Make a champion comparable: scored anew are those of other test rows or another base, without answers, or whose
    texts were read by other rules.

    Where it cannot be, its recorded scores serve if they are on the same rows; otherwise it stays as it is, and the
    rule says that it is not comparable.
    """
    recorded, own, name = champion.candidate, finalist.candidate, f"{champion.task}:{champion.version}"
    if key(recorded) == key(own):
        return Scored(recorded)
    rows, reason = None, "has no answers to these test rows"
    if recorded.test_fingerprint == own.test_fingerprint:
        try:
            rows = read_rows(champion)
        except LoraxsError as error:  # damaged or gone
            reason = f"has no whole answers to these test rows ({error.message})"
    if rows is not None:
        reason = "is of another base" if recorded.base_digest != own.base_digest else ""
        if finalist.rows is not None and not rows.read_alike(finalist.rows):
            reason = "has answers that were read by other rules"
    if not reason:
        return Scored(recorded, rows)
    try:
        if rescore is None:
            raise LoraxsError("nobody here can score it")
        rescored = rescore(champion)
    except LoraxsError as error:
        note = f"the champion {name} {reason} and could not be scored anew: {error.message}"
        return Scored(recorded, rows, note=note)
    rescored_candidate = replace(
        recorded,
        test_metrics=rescored.test_metrics,
        data_fingerprint=rescored.data_fingerprint,
        test_fingerprint=rescored.test_fingerprint,
    )
    return Scored(rescored_candidate, rescored.rows, note=f"the champion {name} {reason}: it was scored anew")


BASE_ALONE = "base"  # in place of a trial id
_MAX_TRIES = 5
_NO_PREDICTIONS: Mapping[str, Path] = {}
_NOTHING = Beside()


class Registry(ChangingRegistry):
    """The adapters registered in the MLflow store at `uri`, and changing who is champion.

    The champion is read again, under the task's lock, before it is replaced.
    """

    def promote(
        self,
        rule: PromotionRule,
        task: Task,
        candidates: Sequence[Candidate],
        folders: Mapping[str, Path],
        forced: bool = False,
        predictions: Mapping[str, Path] = _NO_PREDICTIONS,
        rescore: Rescore | None = None,
        beside: Beside = _NOTHING,
    ) -> tuple[Decision, int | None]:
        """Choose the finalist among `candidates`, decide between it and the champion, and act on it.

        Nobody else promotes meanwhile.

        Args:
            folders: Trial id to sealed adapter folder.
            predictions: Trial id to the file of its answers to the test rows; under `BASE_ALONE` those of the base
                without an adapter.
            rescore: Scores a champion anew where it has no answers to these test rows, or stands on another base.
            beside: What else is known of the study and of the test rows.
        Returns:
            The decision, and the version it made champion.
        """
        name, choice = task.registered_name, choose(rule, task, candidates)
        if choice.finalist is None:
            decision = self._refusal(
                rule, task, beside.study or ", ".join(sorted({c.study for c in candidates})), choice
            )
            with self._locked(name, creates=True) as check:
                self._finish_begun(name, check)
                decision = replace(decision, number=next_number(self.latest_decisions(name)))
                check()
                self._record(decision)
            return decision, None
        files = (predictions.get(name) for name in (choice.finalist.trial_id, BASE_ALONE))
        answers, of_base = (None if file is None else file.read_bytes() for file in files)
        finalist = Scored(choice.finalist, _read_predictions(answers), _read_predictions(of_base), beside.answers)
        test = PromotionTest(rule, task, finalist)
        for _ in range(_MAX_TRIES):
            adapter = self.champion(name)
            champion = None if adapter is None else comparable(adapter, finalist, rescore, self.test_predictions)
            held = None if adapter is None or champion is None else (adapter, champion)
            past = self.history(name)
            reference = self._reference(test, past, held, rescore)
            # Answers are compared before the lock, which may take minutes: within it the test knows what they say.
            test.decide_after(past, champion, seen=beside.seen, reference=reference)
            with self._locked(name, creates=True) as check:
                self._finish_begun(name, check)
                past = self.history(name)
                if _version(self.champion(name)) != _version(adapter) or reference != self._best(test, past, held):
                    continue
                decision = test.decide_after(past, champion, seen=beside.seen, reference=reference, forced=forced)
                reasons = (*choice.reasons, *beside.reasons, *decision.reasons)
                decision = replace(decision, reasons=reasons, at=now(), number=next_number(past))
                if not decision.promoted:
                    check()  # else its number is another's by now
                    self._record(decision)
                    return decision, None
                folder = folders[finalist.candidate.trial_id]
                return self._register(folder, finalist.candidate, decision, check, answers)
        raise RegistryError(f"The champion of {name} changed {_MAX_TRIES} times meanwhile.", hint="try again")

    def record_use(self, finalist: Candidate) -> None:
        """Record that a finalist has answered its test rows, for whoever promotes from another machine."""
        with speaking(self.uri):
            task, rows = check_task(finalist.task), finalist.test_fingerprint
            _decisions.write_use(self._client, self.uri, task, rows, finalist.key)

    def _best(
        self, test: PromotionTest, past: Sequence[Decision], held: tuple[RegisteredAdapter, Scored] | None
    ) -> ToleranceReference | None:
        """Return the best champion there was on a finalist's test rows, the present one as it is scored there."""
        rows, present = test.finalist.candidate.test_fingerprint, None
        if held is not None:
            champion = test.by_answers(held[1])
            metrics = champion.candidate.test_metrics
            if champion.candidate.test_fingerprint == rows and test.criterion.fault(metrics, "test") is None:
                present = ToleranceReference(held[0].version, metrics[test.criterion.metric], champion.rows)
        return find_tolerance_reference(test.criterion, rows, past, present)

    def _reference(
        self,
        test: PromotionTest,
        past: Sequence[Decision],
        held: tuple[RegisteredAdapter, Scored] | None,
        rescore: Rescore | None,
    ) -> ToleranceReference | None:
        """Return what `_best` does, with its answers to the finalist's test rows, scored anew if they were not kept."""
        best = self._best(test, past, held)
        if best is None or best.rows is not None or held is None:
            return best
        if test.finalist.candidate.stored_bytes >= held[0].candidate.stored_bytes:
            return best  # nobody asks
        try:
            scored = comparable(
                self.resolve(f"{held[0].task}:{best.version}"), test.finalist, rescore, self.test_predictions
            )
        except RegistryError as error:
            return replace(best, fault=error.message)
        is_here = scored.candidate.test_fingerprint == test.finalist.candidate.test_fingerprint
        return replace(best, rows=scored.rows if is_here else None, fault=scored.note)

    def _register(
        self, folder: Path, candidate: Candidate, decision: Decision, check: Check, answers: bytes | None
    ) -> tuple[Decision, int]:
        manifest = verify(folder)
        own = manifest.task.registered_name, manifest.study, manifest.trial_id
        if own != (decision.task, candidate.study, decision.winner):
            raise IntegrityError(
                f"{folder} must hold the winner {candidate.study}/{decision.winner} of {decision.task}, "
                f"but its manifest says {manifest.study}/{manifest.trial_id} of {own[0]}."
            )
        task, digest, client = check_task(decision.task), folder_digest(folder), self._client
        with speaking(self.uri):
            # Records come first: no version lacks them, whenever this is killed.
            _versions.ensure_model(client, task)
            for key, value in record_tags(candidate, decision, digest).items():
                client.set_registered_model_tag(task, key, value)
            tags = version_tags(manifest, candidate, digest)
            version = _versions.register(client, self.uri, task, folder, manifest, tags)
            page = version_page(manifest, candidate, decision, version)
            client.update_model_version(task, str(version), page)
            if answers is not None:
                from loraxs_search.registry.scored_rows import FILE

                _versions.add_test_predictions(client, task, version, FILE, answers)
            from loraxs_search.registry.mlflow_model import add_mlflow_model  # pandas

            add_mlflow_model(client, self.uri, client.get_model_version(task, str(version)), manifest)
            factor_sets.publish(client, self.uri, manifest.base_digest, manifest.base_model.id, manifest.factors)
            check()  # registering took a while, and a server has other clients
            client.set_registered_model_alias(task, CHAMPION, str(version))
        made = replace(decision, version=version)
        self._summarise(summarise(task, version, candidate, made))
        self._record(made)
        return made, version

    def _refusal(self, rule: PromotionRule, task: Task, study: str, choice: FinalistChoice) -> Decision:
        """Return the decision on a study none of whose candidates may be promoted."""
        champion, metric = self.champion(task.registered_name), Criterion.of(rule, task).metric
        return Decision(
            task=task.registered_name,
            study=study,
            promoted=False,
            winner=None,
            winner_metric=None,
            champion_metric=champion.candidate.test_metrics.get(metric) if champion else None,
            metric=metric,
            reasons=choice.reasons,
            champion=identity(champion.candidate) if champion else None,
            at=now(),
        )


def _version(champion: RegisteredAdapter | None) -> int | None:
    return champion.version if champion else None


def _read_predictions(content: bytes | None) -> ScoredRows | None:
    if content is None:
        return None
    from loraxs_search.registry.scored_rows import ScoredRows

    return ScoredRows.from_bytes(content)
