"""loraxs-search promote [STUDY], ls, show TASK, history TASK, rollback TASK, rm TASK:VERSION, pull NAME, registry"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Argument, Option

from loraxs_search.cli import _out
from loraxs_search.errors import counted
from loraxs_search.reports.leaderboard import value_cell

if TYPE_CHECKING:
    from loraxs_search.records.search import Decision


def promote(
    study: str | None = Argument(None, help="Name of the study; default: the newest one."),
    force: bool = Option(False, "--force", help="Promote the finalist whatever the rule says; recorded."),
    require: Literal["constant", "all"] | None = Option(
        None, help="Baselines to beat, for this decision; recorded. Default: the study's own."
    ),
    tracking_uri: _out.TrackingOption = None,
    as_json: _out.JsonOption = False,
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
    from loraxs_search.api import promote

    decision = promote(study, force=force, require=require, tracking_uri=tracking_uri)
    if as_json:
        _out.print_json(decision)
    else:
        verdict = "promoted" if decision.promoted else "not promoted"
        _say_decision(f"{decision.task}: {verdict}, ", decision, "  ")
    if decision.promoted:
        _out.tell(f"\nnext: loraxs-search pull {decision.task}")


def _say_decision(verdict: str, decision: Decision, indent: str, end: str = "") -> None:
    """Print what was decided on what, why, and the score of each slice."""
    trial = "no trial" if decision.winner is None else f"trial {decision.winner}"
    lines = [f"{verdict}{trial} of {decision.study or 'no study'}{end}", *(indent + it for it in decision.reasons)]
    for each in decision.slices:
        beside = "" if each.champion_score is None else f", champion {value_cell(each.champion_score, 4)}"
        score = f"{decision.metric} {value_cell(each.score, 4)}{beside}"
        lines.append(f"{indent}{each.name}: {score}, {counted(each.num_rows, 'row')}")
    _out.say("\n".join(lines))


def ls(
    limit: int | None = Option(None, min=1, help="Only the first N, by name.", metavar="N"),
    tracking_uri: _out.TrackingOption = None,
    as_json: _out.JsonOption = False,
) -> None:
    """List all tasks with their champions.

    The score is the champion's on the test rows. "Over seeds" is the mean and standard deviation of its trial and the
    refits, the same params from other seeds, on validation rows.

    Example: loraxs-search ls
    """
    from loraxs_search.api import ls

    tasks = ls(limit=limit, tracking_uri=tracking_uri)
    rows = [
        (
            it.task,
            str(it.version or "-"),
            it.metric or "-",
            value_cell(it.score, 4),
            "-" if it.mean is None or it.spread is None else f"{it.mean:.4f} ± {it.spread:.4f}",
            "-" if it.stored_bytes is None else f"{it.stored_bytes:,}",
            it.base_model.rstrip("/").rpartition("/")[2] or "-",
            it.promoted_at[:16].replace("T", " ") or "-",
        )
        for it in tasks
    ]
    columns = ("task", "version", "metric", "score", "over seeds", "bytes", "base", "promoted")
    _out.emit(as_json, tasks, _out.table(columns, rows, right=frozenset({"version", "score", "bytes"})))
    if not rows and not as_json:
        _out.tell("\nno tasks yet: `loraxs-search promote STUDY` makes one")


def show(task: _out.TaskArgument, tracking_uri: _out.TrackingOption = None, as_json: _out.JsonOption = False) -> None:
    """Show the adapters of a task, newest first.

    It shows the last hundred versions. Test metrics are those of the adapter itself. Next to them is what the
    baselines of its search reach on the metric that decided. "Over seeds" is the mean and standard deviation of a
    trial and its refits, the same params from other seeds, on validation rows. It is "-" for a trial without refits
    (`promotion.seeds: 0`), and left out where none has any. The model card has both too. "Aliases" are other names of a
    version, such as `champion`. With --json, these versions also have their scores by class, the confusion matrix, and
    the first test rows that they answer wrongly.

    Example: loraxs-search show movie-reviews
    """
    from loraxs_search.api import show as versions
    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.registry.finalist import seed_statistics
    from loraxs_search.registry.store import Registry

    adapters = versions(task, tracking_uri=tracking_uri)
    spreads = [
        {name: str(spread) for name, spread in seed_statistics(it.candidate).items() if spread.count > 1}
        for it in adapters
    ]
    if as_json:
        value = [vars(it) | {"spread": spread} for it, spread in zip(adapters, spreads, strict=True)]
        registry = Registry(resolve_uri(tracking_uri))
        for each in value:
            if each["aliases"]:
                each["by_class"] = registry.manifest(each["source"]).by_class
        _out.print_json(value)
        return
    if not adapters:
        _out.tell(f"{task} has no version: see `loraxs-search history {task}`")
        return
    candidates = [version.candidate for version in adapters]
    metrics = list(dict.fromkeys(name for it in candidates for name in it.test_metrics if name != "loss"))
    trained_again = [name for name in metrics if any(name in spread for spread in spreads)]
    baselines = list(dict.fromkeys(baseline.name for it in candidates for baseline in it.baselines))
    over = [f"validation {name} over seeds" for name in trained_again]
    rows = []
    for version, it, spread in zip(adapters, candidates, spreads, strict=True):
        mark = "" if it.test_fingerprint == candidates[0].test_fingerprint else " *"
        beside = {baseline.name: baseline.test_metrics.get(version.decision.metric) for baseline in it.baselines}
        rows.append(
            [
                str(version.version),
                *(value_cell(it.test_metrics.get(name), 4) + mark for name in metrics),
                *(spread.get(name, "-") for name in trained_again),
                *(value_cell(beside.get(name), 4) + mark for name in baselines),
                f"{it.stored_bytes:,}",
                it.base_model.rstrip("/").rpartition("/")[2] or "-",
                f"{it.study}/{it.trial_id}",
                version.created_at[:16].replace("T", " "),
                ",".join(version.aliases) or "-",
            ]
        )
    columns = ["version", *metrics, *over, *baselines, "bytes", "base", "trial", "made", "aliases"]
    _out.say(_out.table(columns, rows, right=frozenset({"version", "bytes"})))
    if any(it.test_fingerprint != candidates[0].test_fingerprint for it in candidates):
        _out.tell("\ntest scores marked * are of other test rows than the first one's: do not compare them")
    for version in adapters:
        if version.candidate.operating_points and ("champion" in version.aliases or version is adapters[0]):
            _out.tell(f"\nversion {version.version}:")
            _out.print_points(version.candidate.operating_points)
    has_champion = any("champion" in version.aliases for version in adapters)
    name = task if has_champion else f"{task}:{adapters[0].version}"
    _out.tell(f'\nload it: loraxs-search pull {name}\nin Python: loraxs_search.load_adapter("{name}")')


def history(
    task: _out.TaskArgument, tracking_uri: _out.TrackingOption = None, as_json: _out.JsonOption = False
) -> None:
    """Show every decision on a task's champion.

    The oldest comes first. Refusals, rollbacks and removals are there too, each with the rule's reasons and numbers.

    Example: loraxs-search history movie-reviews
    """
    from loraxs_search.api import history

    decisions = history(task, tracking_uri=tracking_uri)

    if as_json:
        _out.print_json(decisions)
        return
    if not decisions:
        _out.tell(f"no decision on {task} so far: `loraxs-search promote STUDY` makes one")
    for decision in decisions:
        verdict = "promoted" if decision.promoted else "refused"
        verdict = {"rollback": "rolled back", "remove": "removed"}.get(decision.action, verdict)
        at = f"{decision.at[:16].replace('T', ' ')}  " if decision.at else ""
        _say_decision(f"{at}{verdict}  ", decision, "    ", ", by force" if decision.forced else "")


def rollback(
    task: _out.TaskArgument,
    to: int | None = Option(None, help="Version; default: the champion before this one."),
    tracking_uri: _out.TrackingOption = None,
    as_json: _out.JsonOption = False,
) -> None:
    """Restore the previous champion of a task, or the version of --to.

    From then on, `pull TASK` gets that version. `history` shows the change.

    Example: loraxs-search rollback movie-reviews
    """
    from loraxs_search.api import rollback

    decision = rollback(task, to=to, tracking_uri=tracking_uri)
    _out.emit(as_json, decision, f"{task}: {decision.reasons[-1]}, trial {decision.winner}")


def rm(
    name: str = Argument(help="TASK:version."),
    force: bool = Option(False, "--force", help="Even a champion."),
    tracking_uri: _out.TrackingOption = None,
    as_json: _out.JsonOption = False,
) -> None:
    """Remove one version of a task from the registry.

    A champion is removed only with --force: then the task has none. Copies that were pulled stay where they are.

    Example: loraxs-search rm movie-reviews:1
    """
    from loraxs_search.api import remove

    decision = remove(name, force=force, tracking_uri=tracking_uri)
    _out.emit(as_json, decision, f"{name}: removed")


def pull(
    name: str = Argument(help="TASK (its champion), TASK@alias or TASK:version."),
    form: str = Option(
        "native",
        "--format",
        help="native (the adapter as trained), lora, merged (a whole model), gguf (for llama.cpp), or onnx.",
        metavar="FORMAT",
    ),
    rank: int | None = Option(None, min=1, help="Pad --format lora to this rank with zeros.", metavar="N"),
    dtype: Literal["float32"] | None = Option(None, help="Type of --format merged; else the base's own."),
    precision: Literal["int8"] | None = Option(None, help="How matrices of --format onnx are stored; else as float32."),
    out: Path | None = Option(None, help="Copy it to this folder, new or empty.", metavar="FOLDER"),
    tracking_uri: _out.TrackingOption = None,
    as_json: _out.JsonOption = False,
) -> None:
    """Fetch a promoted adapter and print its folder.

    Before the folder appears, the manifest is checked against the registry, and every file against the manifest. A pull
    that was cut short continues where it was. If the registry cannot be reached, you get the adapter that this name
    last gave on this machine, with a notice.

    PEFT loads the folder: `import loraxs_search, peft; peft.PeftModel.from_pretrained(base, folder)`. Or let
    `loraxs_search.load_adapter` find the base. On such a model, `merge_and_unload()` returns a plain model.

    Formats: `native` is R and head, as trained. `merged` is the whole model with its tokenizer. A base in bfloat16
    rounds small updates away: you get a warning, and --dtype float32 keeps them. `lora` is exactly the same function as
    plain LoRA, and larger: r (in + out) numbers for each layer instead of r x r. It comes with the tokenizer, and its
    README.md has the lines that load it with only PEFT, head and labels included. --rank N fills it up with zeros, for
    a server that wants one rank for all adapters; N must be at least the adapter's own rank.

    vLLM, SGLang and Ray Serve LLM load `lora` folders as they are, but only of bases that they adapt, and only without
    a trained head: those of language models, such as a text-generation task trains (cluster/README.md, "Serve with
    vLLM"). `gguf` is the same for llama.cpp, adapter.gguf, beside a Modelfile with which Ollama asks as in training; it
    needs the base as a GGUF file.

    `onnx` is for any ONNX runtime, of LoRA-XS classifiers and regressions with basis `top`. model.onnx has the
    base; adapters are small files of inputs, which each row brings: one model.onnx serves all of a base, mixed in one
    batch. It needs the extra, `pip install '.[onnx]'`. README.md has the code that asks it. --precision int8 stores
    a little more than a quarter of the bytes, and computes in float32, at its speed. An export that moves a probability
    of a few sentences by more than 0.05 is refused.

    R fits only the weights that it was trained on. Every load compares them, and refuses others. `pull` also brings the
    SVD factors that this machine lacks (cluster/README.md, "Factors").

    Example: loraxs-search pull movie-reviews --format lora
    """
    from loraxs_search.api import pull

    if form != "native":
        _out.tell(f"pulling {name} as {form} ...")
    path = pull(name, form=form, rank=rank, dtype=dtype, precision=precision, out=out, tracking_uri=tracking_uri)
    _out.emit(as_json, {"name": name, "path": str(path), "format": form}, str(path))
