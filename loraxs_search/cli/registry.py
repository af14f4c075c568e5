"""loraxs-search promote [STUDY], ls, show TASK, history TASK, rollback TASK, rm TASK:VERSION, pull NAME, registry"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loraxs_search.cli._output import (
    JsonOption,
    TaskArgument,
    TrackingOption,
    describe_decision,
    emit,
    print_reasons,
    print_table,
    saying,
    score_cell,
)

if TYPE_CHECKING:
    from loraxs_search.registry.versions import RegisteredAdapter


_WIDTH = 100  # characters of a sample's texts


def promote(
    study: Annotated[str | None, typer.Argument(help="Name of the study; default: the newest one.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote the finalist whatever the rule says; recorded.")
    ] = False,
    require: Annotated[
        Literal["constant", "all"] | None,
        typer.Option("--require", help="Baselines to beat, for this decision; recorded. Default: the study's own."),
    ] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide whether a study's best adapter becomes champion.

    The finalist of the study becomes the champion of its task if it is significantly better than the present one on the
    same test rows, or smaller and shown to be less than `margin` worse. A first champion must beat the baselines. The
    keys under `promotion` of the space change this rule; --require constant compares it only with the constant answer,
    this once. The whole rule: search_spaces/README.md, "The rule of promotion".

    Promoted or not, the decision and its reasons are printed and recorded. A refusal is a result too, so the exit code
    is 0 for both (`--json` has `promoted`).

    Run it where the search ran: it reads the study from LORAXS_HOME. For a study with --storage, `loraxs-search resume
    STUDY --storage URI` first brings it to this machine.

    Example: loraxs-search promote reviews
    """
    from loraxs_search.api import promote, samples

    decision = promote(study, force=force, require=require, tracking_uri=tracking_uri)
    verdict = "promoted" if decision.promoted else "not promoted"

    def show() -> None:
        print(f"{decision.task}: {verdict}, {describe_decision(decision)}")
        print_reasons(decision, "  ")
        for sample in samples(decision):
            print(f"\n  {_last_line(sample.prompt)}")
            print(f"    reference: {_line(sample.reference)}\n    answer: {_line(sample.answer)}")

    emit(as_json, decision, show)
    if decision.promoted:
        print(f"\nnext: loraxs-search pull {decision.task}", file=sys.stderr)


def _last_line(prompt: str) -> str:
    """Return a prompt in one line, its end where it is long."""
    line = " ".join(prompt.split())
    return line if len(line) <= _WIDTH else f"...{line[-_WIDTH:]}"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}..."


_COLUMNS = ("task", "version", "metric", "score", "over seeds", "bytes", "base", "promoted")


def ls(
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N, by name.", metavar="N")] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """List all tasks with their champions.

    The score is the champion's on the test rows. "Over seeds" is the mean and standard deviation of its trial and the
    refits, the same params from other seeds, on validation rows.

    Example: loraxs-search ls
    """
    from loraxs_search.api import ls

    tasks = ls(limit=limit, tracking_uri=tracking_uri)

    def show() -> None:
        rows = []
        for task in tasks:
            has_spread = task.mean is not None and task.spread is not None
            cells = (
                task.task,
                "-" if task.version is None else str(task.version),
                task.metric or "-",
                score_cell(task.score),
                f"{task.mean:.4f} ± {task.spread:.4f}" if has_spread else "-",
                "-" if task.stored_bytes is None else f"{task.stored_bytes:,}",
                task.base_model.rstrip("/").rpartition("/")[2] or "-",
                task.promoted_at[:16].replace("T", " ") or "-",
            )
            rows.append(cells)
        print_table(_COLUMNS, rows, right=frozenset({"version", "score", "bytes"}))
        if not rows:
            print("\nno tasks yet: `loraxs-search promote STUDY` makes one", file=sys.stderr)

    emit(as_json, tasks, show)


def show(task: TaskArgument, tracking_uri: TrackingOption = None, as_json: JsonOption = False) -> None:
    """Show the adapters of a task, newest first.

    It shows the last hundred versions. Test metrics are those of the adapter itself. Next to them is what the
    baselines of its search reach on the metric that decided. "Over seeds" is the mean and standard deviation of a
    trial and its refits, the same params from other seeds, on validation rows. It is "-" for a trial without refits
    (`promotion.seeds: 0`), and left out where none has any. The model card has both too. "Aliases" are other names of a
    version, such as `champion`. With --json, these versions also have their scores by class, the confusion matrix, and
    the first test rows that they answer wrongly.

    Example: loraxs-search show movie-reviews
    """
    from loraxs_search.api import class_report
    from loraxs_search.api import show as versions

    adapters = versions(task, tracking_uri=tracking_uri)
    value = [vars(version) | {"spread": _spreads(version)} for version in adapters]
    for version, each in zip(adapters, value, strict=True):
        if as_json and version.aliases:
            each["by_class"] = class_report(version, tracking_uri=tracking_uri)

    def show() -> None:
        metrics = list(dict.fromkeys(name for one in adapters for name in one.candidate.test_metrics if name != "loss"))
        trained_again = [name for name in metrics if any(name in _spreads(version) for version in adapters)]
        over = [f"validation {name} over seeds" for name in trained_again]
        baselines = list(dict.fromkeys(y.name for version in adapters for y in version.candidate.baselines))
        columns = ["version", *metrics, *over, *baselines, "bytes", "base", "trial", "made", "aliases"]
        rows = adapters[0].candidate.test_fingerprint
        cells = [_cells(version, metrics, trained_again, baselines, rows) for version in adapters]
        print_table(columns, cells, right=frozenset({"version", "bytes"}))
        champion = next((version for version in adapters if "champion" in version.aliases), None)
        name = task if champion is not None else f"{task}:{adapters[0].version}"
        if len({version.candidate.test_fingerprint for version in adapters}) > 1:
            print(
                "\ntest scores marked * are of other test rows than the first one's: do not compare them",
                file=sys.stderr,
            )
        print(f"\nload it: loraxs-search pull {name}", file=sys.stderr)
        print(f'in Python: loraxs_search.load_adapter("{name}")', file=sys.stderr)

    none = f"{task} has no version: see `loraxs-search history {task}`"
    emit(as_json, value, show if adapters else lambda: print(none, file=sys.stderr))


def _cells(
    version: RegisteredAdapter, metrics: list[str], trained_again: list[str], baselines: Sequence[str], rows: str
) -> list[str]:
    candidate, spreads = version.candidate, _spreads(version)
    mark = "" if candidate.test_fingerprint == rows else " *"
    beside = {y.name: y.test_metrics.get(version.decision.metric) for y in candidate.baselines}
    return [
        str(version.version),
        *(score_cell(candidate.test_metrics.get(name)) + mark for name in metrics),
        *(spreads.get(name, "-") for name in trained_again),
        *(score_cell(beside.get(name)) + mark for name in baselines),
        f"{candidate.stored_bytes:,}",
        candidate.base_model.rstrip("/").rpartition("/")[2] or "-",
        f"{candidate.study}/{candidate.trial_id}",
        version.created_at[:16].replace("T", " "),
        ",".join(version.aliases) or "-",
    ]


def _spreads(version: RegisteredAdapter) -> dict[str, str]:
    from loraxs_search.registry.finalist import seed_statistics

    return {name: str(spread) for name, spread in seed_statistics(version.candidate).items() if spread.count > 1}


def history(task: TaskArgument, tracking_uri: TrackingOption = None, as_json: JsonOption = False) -> None:
    """Show every decision on a task's champion.

    The oldest comes first. Refusals, rollbacks and removals are there too, each with the rule's reasons and numbers.

    Example: loraxs-search history movie-reviews
    """
    from loraxs_search.api import history

    decisions = history(task, tracking_uri=tracking_uri)

    def show() -> None:
        if not decisions:
            print(f"no decision on {task} so far: `loraxs-search promote STUDY` makes one", file=sys.stderr)
        for decision in decisions:
            verdict = {"rollback": "rolled back", "remove": "removed"}.get(
                decision.action, "promoted" if decision.promoted else "refused"
            )
            by = ", by force" if decision.forced else ""
            at = f"{decision.at[:16].replace('T', ' ')}  " if decision.at else ""
            print(f"{at}{verdict}  {describe_decision(decision)}{by}")
            print_reasons(decision, "    ")

    emit(as_json, decisions, show)


def rollback(
    task: TaskArgument,
    to: Annotated[int | None, typer.Option("--to", help="Version; default: the champion before this one.")] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore the previous champion of a task, or the version of --to.

    From then on, `pull TASK` gets that version. `history` shows the change.

    Example: loraxs-search rollback movie-reviews
    """
    from loraxs_search.api import rollback

    decision = rollback(task, to=to, tracking_uri=tracking_uri)
    emit(as_json, decision, lambda: print(f"{task}: {decision.reasons[-1]}, trial {decision.winner}"))


def rm(
    name: Annotated[str, typer.Argument(help="TASK:version.")],
    force: Annotated[bool, typer.Option("--force", help="Even a champion or the best version.")] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove one version of a task from the registry.

    A champion and the version with the best test score are removed only with --force. Without its champion a task has
    none. Copies that were pulled stay where they are.

    Example: loraxs-search rm movie-reviews:1
    """
    from loraxs_search.api import remove

    decision = remove(name, force=force, tracking_uri=tracking_uri)
    emit(as_json, decision, lambda: print(f"{name}: removed"))


def pull(  # each is an option
    name: Annotated[str, typer.Argument(help="TASK (its champion), TASK@alias or TASK:version.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="native (the adapter as trained), lora, merged (a whole model), gguf (for llama.cpp), or onnx.",
            metavar="FORMAT",
        ),
    ] = "native",
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Pad --format lora to this rank with zeros.", metavar="N")
    ] = None,
    dtype: Annotated[
        Literal["float32"] | None, typer.Option("--dtype", help="Type of --format merged; else the base's own.")
    ] = None,
    precision: Annotated[
        Literal["fp16", "int8"] | None,
        typer.Option("--precision", help="How matrices of --format onnx are stored; else as float32."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Copy it to this folder, new or empty.", metavar="FOLDER")
    ] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a promoted adapter and print its folder.

    Before the folder appears, the manifest is checked against the registry, and every file against the manifest. A pull
    that was cut short continues where it was. If the registry cannot be reached, you get the adapter that this name
    last gave on this machine, with a notice.

    PEFT loads the folder: `import loraxs_search, peft; peft.PeftModel.from_pretrained(base, folder)`. Or let
    `loraxs_search.load_adapter` find the base. On such a model, `merge_and_unload()` returns a plain model, and
    `add_weighted_adapter(names, weights, "sum")` adds up adapters without heads exactly, since all share one basis.

    Formats: `native` is R and head, as trained. `merged` is the whole model with its tokenizer. A base in bfloat16
    rounds small updates away: you get a warning, and --dtype float32 keeps them. `lora` is exactly the same function as
    plain LoRA, and larger: r (in + out) numbers for each layer instead of r x r. It comes with the tokenizer, and its
    README.md has the lines that load it with only PEFT, head and labels included. --rank N fills it up with zeros, for
    a server that wants one rank for all adapters; N must be at least the adapter's own rank.

    vLLM, SGLang and Ray Serve LLM load `lora` folders as they are, but only of bases that they adapt, and only without
    a trained head: those of language models, such as a text-generation task trains (cluster/README.md, "Serve with
    SGLang or Ray Serve LLM"). `gguf` is the same for llama.cpp, adapter.gguf, beside a Modelfile with which
    Ollama asks as in training; it needs the base as a GGUF file.

    `onnx` is for any ONNX runtime, of LoRA-XS classifiers, taggers and regressions with basis `top`. model.onnx has the
    base; adapters are small files of inputs, which each row brings: one model.onnx serves all of a base, mixed in one
    batch. It needs the extra, `pip install '.[onnx]'`. README.md has the code that asks it. --precision fp16 stores
    half the bytes, int8 a little more than a quarter; both compute in float32, at its speed. An export that moves a
    probability of a few sentences by more than 0.002 (fp16) or 0.05 (int8) is refused.

    R fits only the weights that it was trained on. Every load compares them, and refuses others. `pull` also brings the
    SVD factors that this machine lacks (cluster/README.md, "Factors").

    Example: loraxs-search pull movie-reviews --format lora
    """
    from loraxs_search.api import pull

    with saying(f"pulling {name} as {form}") if form != "native" else contextlib.nullcontext():
        path = pull(name, form=form, rank=rank, dtype=dtype, precision=precision, out=out, tracking_uri=tracking_uri)
    emit(as_json, {"name": name, "path": str(path), "format": form}, lambda: print(path))
