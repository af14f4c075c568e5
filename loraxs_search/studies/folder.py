"""One study on disk: created whole, opened by name, worked on by one driver at a time."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import LoraxsError, StudyError, TrackingError, unknown_name
from loraxs_search.home import disk_faults, ensure_dir, file_lock, home, is_locked, sync_folder, write_atomic
from loraxs_search.log.events import TrialsAdvanced
from loraxs_search.log.study_log import JOURNAL, StudyLog
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path
from loraxs_search.records.codec import check_trial_id, from_json, to_json
from loraxs_search.records.search import Baseline, Candidate, CheckpointSelection, Command
from loraxs_search.records.task import Identity
from loraxs_search.studies.record_files import Confirmations, RecordFile, StudyInfo, read_text
from loraxs_search.studies.snapshots import Snapshots
from loraxs_search.studies.storage import Storage

if TYPE_CHECKING:
    from loraxs_search.search_space.space import Space

_logger = logging.getLogger(__name__)
_COMMAND_NAME = re.compile(r"(?P<id>[A-Za-z0-9-]{1,64})\.json")


class CommandInbox:
    """Files of one folder. Anyone who may write there may steer the study.

    A file is whole from the moment it is seen and flushed to the device, so a command is never lost once `put` has
    returned. The driver removes it when the journal has its answer: after a kill in between, the journal knows its id.

    Args:
        path: The folder, in the study's; it is made by the first command.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, f"{path.parent.name}/{path.name}"  # the latter in a storage
        self._unreadable: set[Path] = set()  # those that were warned of

    def put(self, command: Command) -> None:
        """Leave a command for the driver, behind those that wait there, even if the clock has been set back since.

        Raises:
            HomeError: the folder cannot be written.
            StudyError: the study was removed meanwhile.
        """
        try:
            with disk_faults(self._path):
                self._path.mkdir(exist_ok=True)
        except FileNotFoundError as error:
            raise StudyError(
                f"Study {self._path.parent.name!r} was removed meanwhile.",
                hint="`loraxs-search status` lists what is left",
            ) from error
        latest = max((other.issued_at for other in self.waiting()), default=0.0)
        if command.issued_at <= latest:
            command = replace(command, issued_at=math.nextafter(latest, math.inf))
        write_atomic(self._path / f"{command.command_id}.json", to_json(command), parents=False)

    def waiting(self, *, set_aside: bool = False) -> list[Command]:
        """Return the commands that lie there, oldest first; other files are skipped.

        What cannot be read is warned of once: one file stops neither the search nor other commands.

        Args:
            set_aside: Rename other files, with a warning: the driver looks often.
        """
        commands, unreadable = list[Command](), dict[Path, OSError]()
        try:
            paths = [path for path in self._path.iterdir() if _COMMAND_NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            paths, unreadable = [], {self._path: error}
        for path in paths:
            try:
                command = from_json(Command, path.read_bytes())
                if f"{command.command_id}.json" == path.name:
                    commands.append(command)
                    continue
            except FileNotFoundError:  # its sender took it back
                continue
            except OSError as error:  # as of a file that only its owner may read
                unreadable[path] = error
                continue
            except ValueError:
                pass  # not a command
            if set_aside:
                _logger.warning("%s is no command to the search; it is set aside", path)
                with disk_faults(path):
                    path.replace(path.with_suffix(".damaged"))
        for path in unreadable.keys() - self._unreadable:
            self._unreadable.add(path)
            _logger.warning("commands in %s cannot be read: %s", path, unreadable[path].strerror)
        return sorted(commands, key=lambda command: (command.issued_at, command.command_id))

    def remove(self, command_id: str) -> None:
        """Remove an answered command; a missing one changes nothing."""
        with disk_faults(self._path):
            (self._path / f"{command_id}.json").unlink(missing_ok=True)

    def put_elsewhere(self, storage: Storage, command: Command) -> None:
        """Leave a command for a driver on another machine.

        Raises:
            StorageError: the storage cannot be used.
        """
        storage.create(f"{self._place}/{command.command_id}.json", to_json(command).encode())

    def take_from(self, storage: Storage) -> None:
        """Bring here what `put_elsewhere` has left in a storage; one that comes again after a kill counts once.

        Raises:
            StorageError: the storage cannot be used.
            HomeError: the folder cannot be written.
        """
        for key in storage.keys(self._place):
            name, content = key.rpartition("/")[2], storage.get(key)
            if content and _COMMAND_NAME.fullmatch(name):
                write_atomic(self._path / name, content)
            storage.delete(key)


@dataclass(frozen=True)
class _CandidateFile:
    """Candidates of a round, and the finalists of earlier ones: a search may continue after its end."""

    candidates: list[Candidate]
    round: int = 0
    earlier_finalists: tuple[str, ...] = ()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ASIDE = ".old"  # of an adapter while it is replaced
_PROBE_S = 0.3  # far longer than it takes to ask whether a lock is held


def studies_root() -> Path:
    """Return the folder that holds all studies; it may not exist yet."""
    return home() / "studies"


def list_studies() -> list[str]:
    """Return the names of all studies, newest first."""
    root = studies_root()
    if not root.is_dir():
        return []
    times = {}
    for path in root.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may be removing it
            if StudyFolder.exists(path.name):
                try:
                    times[path.name] = (path / "study.json").stat().st_mtime
                except PermissionError:
                    times[path.name] = path.stat().st_mtime
    return sorted(times, key=times.__getitem__, reverse=True)


def broken_studies() -> list[str]:
    """Return the names of folders that stand where studies do and have no `study.json`, sorted."""
    root = studies_root()
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted(name for name in names if _NAME.fullmatch(name) and not StudyFolder.exists(name))


class StudyFolder:
    """A study's files. Reading needs no lock; a driver holds `lock()` while it works.

    Attributes:
        identity: The base and the data that the study began with; there is none before a host has loaded them.
        steps: How far trials were when that was last recorded.
        inbox: Commands of people on this machine that no driver has answered yet.
        confirmed: What has been confirmed of its candidates so far.
        checkpoint_selection: Which step of a trial becomes its adapter.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock_path = path, path / "study.lock"
        self.space_path, self.journal_path, self.adapters_path = path / "space.yaml", path / JOURNAL, path / "adapters"
        self.info = StudyInfo.parse(read_text(path / "study.json"), str(path))
        self.name = self.info.name
        self.identity = RecordFile(Identity, path / "identity.json", indent=2)
        self.steps = RecordFile(TrialsAdvanced, path / "steps.json")
        self.inbox = CommandInbox(path / "commands")
        self.confirmed = Confirmations(path / "confirmed")
        self.checkpoint_selection = CheckpointSelection.of(self.info.task, self.info.search)
        self._assets = RecordFile(dict[str, str], path / "assets.json", indent=2)
        self._baselines = RecordFile(tuple[Baseline, ...], path / "baselines.json", indent=2)
        self._answers = RecordFile(dict[str, tuple[Baseline, ...]], path / "baselines.answers.json")
        self._candidates = RecordFile(_CandidateFile, path / "candidates.json", indent=2)
        self._round = RecordFile(int, path / "round.json")  # how often the search continued after its candidates

    @property
    def snapshots(self) -> Snapshots:
        """The states of its trials."""
        return Snapshots(self.path / "snapshots", self.name, self.checkpoint_selection)

    @classmethod
    def create(cls, info: StudyInfo, space_text: str, resolved: Space | None = None) -> StudyFolder:
        """Create the folder beside its place and rename it: a study exists whole or not at all, and once.

        Args:
            resolved: The space with all its defaults; see `space`.
        Raises:
            StudyError: the name is taken or malformed.
            HomeError: the folder cannot be written.
        """
        cls.check_new(info.name)
        path = studies_root() / info.name
        building = studies_root() / f".{info.name}.{uuid.uuid4().hex}"
        try:
            ensure_dir(building / "snapshots")
            write_atomic(building / "space.yaml", space_text)
            if resolved is not None:
                write_atomic(building / "space.json", to_json(replace(resolved, text=""), indent=2))
            write_atomic(building / "study.json", to_json(info, indent=2))
            building.rename(path)
        except OSError:
            cls.check_new(info.name)  # of two at once the first one stands: its folder is not replaced
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return cls(path)

    @staticmethod
    def exists(name: str) -> bool:
        """Say whether there is a study of that name. Another user's folder that tells us nothing counts as one."""
        if not _NAME.fullmatch(name):
            return False
        try:
            return (studies_root() / name / "study.json").is_file()
        except PermissionError:
            return True

    @classmethod
    def check_new(cls, name: str) -> None:
        """Refuse a name that is malformed or taken.

        Raises:
            StudyError: it is.
        """
        if not _NAME.fullmatch(name):
            raise StudyError(
                f"A study name must be letters, digits, `_`, `.` and `-` (at most 100), but got {name!r}.",
                hint="choose another with --name",
            )
        path = studies_root() / name
        if not path.exists():
            return
        if cls.exists(name):
            raise StudyError(
                f"Study {name!r} already exists.",
                hint=f"continue with `loraxs-search resume {name}`, or choose another name with --name",
            )
        # A fetch was cut short, or the file was taken away.
        raise StudyError(
            f"Study {name!r} must be new, but {path} is there, without study.json.",
            hint=f"fetch it whole with `loraxs-search resume {name} --storage URI`, remove it with "
            f"`loraxs-search studies rm {name} --force`, or choose another name with --name",
        )

    @classmethod
    def open(cls, name: str) -> StudyFolder:
        """Open a study by name.

        Raises:
            StudyError: there is no such study, its `study.json` is damaged or of another format, or the folder was
                renamed or copied.
        """
        if not cls.exists(name):
            known = list_studies()
            hint = "`loraxs-search status` lists them" if known else "start one with `loraxs-search launch SPACE`"
            raise StudyError(unknown_name("study", name, known), hint=hint)
        folder = cls(studies_root() / name)
        if any(folder.adapters_path.glob(f".*{_ASIDE}")):
            with contextlib.suppress(LoraxsError), folder.lock():  # which restores them; its holder replaces them now
                pass
        return folder

    def space(self) -> Space:
        """Return what the study searches, with the defaults that there were at its launch.

        Raises:
            StudyError: the study's files are damaged.
        """
        from loraxs_search.search_space.document import as_mapping, parse_document
        from loraxs_search.search_space.parameters import METHOD, PARAMETERS  # late: a list of studies does without
        from loraxs_search.search_space.space import Space

        info, text = self.info, read_text(self.space_path)
        space = RecordFile(Space, self.path / "space.json").load()
        # Samplers draw and encode in the order of the file: a stored record has its keys sorted.
        written = (METHOD, *as_mapping(as_mapping(parse_document(text, space.source).data).get(PARAMETERS)))
        place = {parameter: number for number, parameter in enumerate(written)}
        ordered = sorted(space.parameters, key=lambda parameter: place.get(parameter, len(place)))
        return replace(
            space,
            text=text,
            name=info.name,
            parameters={parameter: space.parameters[parameter] for parameter in ordered},
            task=info.task,
            base_model=info.base_model,
            search=info.search,
            promotion=info.promotion,
        )

    def journal(self) -> StudyLog:
        """Read the journal as it stands now."""
        return StudyLog(self.journal_path, self.name)

    def is_running(self) -> bool:
        """Say whether a driver on this machine holds the study now; nothing is written, and none is kept out."""
        return is_locked(self._lock_path)

    def state(self) -> str:
        """Return `running`, `finished` or `interrupted`, by the lock that a driver on this machine holds."""
        if self.is_running():
            return "running"
        return "finished" if self.candidates() is not None else "interrupted"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study as its only driver; the system lets go of it when the process dies.

        Whoever asks whether it is held, holds it for a moment.

        Raises:
            StudyError: another process holds it, or the study is gone.
            HomeError: this user may not write to it.
        """
        from filelock import Timeout

        with contextlib.ExitStack() as held:
            try:
                with disk_faults(self.path):
                    held.enter_context(file_lock(self._lock_path).acquire(timeout=_PROBE_S))
            except Timeout as error:
                raise StudyError(
                    f"Study {self.name!r} must have one driver at a time, but another process is at work on it.",
                    hint=f"watch it with `loraxs-search status {self.name}`",
                ) from error
            except FileNotFoundError:
                if (self.path / "study.json").is_file():
                    raise
            if not (self.path / "study.json").is_file():  # removed since it was opened; the lock may have made a folder
                with contextlib.suppress(OSError):
                    if [path.name for path in self.path.iterdir()] == ["study.lock"]:
                        shutil.rmtree(self.path)
                raise StudyError(
                    f"Study {self.name!r} was removed meanwhile.", hint="`loraxs-search status` lists what is left"
                )
            self._restore_adapters()
            yield

    def write_asset(self, name: str, content: bytes) -> str:
        """Keep what trials start from, under a name and its digest, which is returned."""
        digest = hashlib.sha256(content).hexdigest()
        write_atomic(self.path / "assets" / f"{digest}.safetensors", content)
        self._assets.write({**self.assets(), name: digest})
        return digest

    def assets(self) -> Mapping[str, str]:
        """Return the digests of the study's assets by name."""
        return self._assets.read() or {}

    def read_asset(self, digest: str) -> bytes:
        """Return an asset.

        Raises:
            StudyError: it is missing, or not what its name says.
        """
        path = self.path / "assets" / f"{digest}.safetensors"
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise StudyError(
                f"A study must keep what its trials start from, but {path} is {'damaged' if content else 'missing'}.",
                hint="restore the file from a backup, or launch the study again under another name",
            )
        return content

    def write_adapter(self, trial_id: str, files: Mapping[str, bytes]) -> Path:
        """Write an adapter folder whole, replacing one of the same trial, and return it; the caller holds the lock.

        A kill between the last two renames leaves the old one beside it; who opens or locks the study brings it back.
        """
        target = self.adapter_path(trial_id)
        aside, building = (target.with_name(f".{target.name}{end}") for end in (_ASIDE, f".{uuid.uuid4().hex}"))
        try:
            for name, content in files.items():
                write_atomic(building / name, content)
            self._restore_adapters()
            with disk_faults(target):
                if target.exists():
                    target.rename(aside)
                building.rename(target)
                sync_folder(target.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        return target

    def _restore_adapters(self) -> None:
        """Bring back adapters whose replacement was killed before the new one was in its place."""
        with disk_faults(self.path):
            for aside in self.adapters_path.glob(f".*{_ASIDE}"):
                target = aside.with_name(aside.name[1:].removesuffix(_ASIDE))
                if target.exists():
                    shutil.rmtree(aside)
                else:
                    aside.rename(target)

    def adapter_path(self, trial_id: str) -> Path:
        return self.adapters_path / check_trial_id(trial_id)

    # ---- baselines: their scores, and apart from these their answers to the test rows --------------------------------
    def write_baselines(self, baselines: Sequence[Baseline]) -> None:
        """Record what simple models reach on the study's rows, and the answers to test rows that they bring.

        What the untouched base reaches stays unless it is among them.
        """
        if not any(one.is_untouched for one in baselines):
            baselines = [*baselines, *(one for one in self.baselines() or () if one.is_untouched)]
        if answered := tuple(one for one in baselines if one.test_answers):
            self._answers.write({self.info.task.registered_name: answered})
        self._baselines.write(tuple(replace(one, test_answers=(), test_rows="") for one in baselines))

    def baseline_answers(self) -> Mapping[str, Baseline]:
        """Return by name the simple models whose answers to the test rows were kept, with these."""
        answered = self._answers.read() or {}
        return {
            one.name: one for one in answered.get(self.info.task.registered_name, ())
        }  # none to another task's rows

    def baselines(self) -> tuple[Baseline, ...] | None:
        """Return what simple models reach, or None when that has not been computed."""
        return self._baselines.read()

    # ---- candidates, once the search has come to its end -------------------------------------------------------------
    def write_candidates(self, candidates: list[Candidate]) -> None:
        """Record the scored candidates; their presence means that the search is finished."""
        self._candidates.write(_CandidateFile(candidates, self._round.read() or 0, self.earlier_finalists()))

    def candidates(self) -> list[Candidate] | None:
        """Return the scored candidates, best first by validation, or None when the search is not finished."""
        file = self._candidates.read()
        return file.candidates if file is not None and file.round >= (self._round.read() or 0) else None

    def set_candidates_aside(self) -> None:
        """Have the candidates be none any more, since the search continues; what is known of each of them stays.

        Refits and scores of adapters that become candidates again need not be made again, and test rows that an adapter
        has answered are not asked again. No file is taken away: a storage that has a copy would keep it.
        """
        if self.candidates() is not None:
            self._round.write((self._round.read() or 0) + 1)

    def earlier_finalists(self) -> tuple[str, ...]:
        """Return the adapters that had answered the test rows when the search continued, in order."""
        file = self._candidates.read()
        if file is None:
            return ()
        are_earlier = file.round < (self._round.read() or 0)
        last = [each.trial_id for each in file.candidates if are_earlier and each.test_metrics]
        return tuple(dict.fromkeys((*file.earlier_finalists, *last)))

    # ---- what it leads to --------------------------------------------------------------------------------------------
    def store_uri(self) -> str:
        """Return the address of the MLflow store that the study records in.

        Nothing is asked, and nothing made. The embedded store that is in use now may be missing: the first search makes
        it, or one that was fetched from a storage.

        Raises:
            TrackingError: it is another database, which is gone: a new one in its place would know no run and no
                champion.
        """
        uri = resolve_uri(self.info.tracking_uri)
        path = sqlite_path(uri)
        if path is None or path.exists() or uri == resolve_uri():
            return uri
        hint = "bring the file back"
        if not path.parent.exists():
            hint = f"if the home was moved, leave a link: `ln -s {home()} {path.parent}`; else {hint}"
        raise TrackingError(
            f"The store that study {self.name!r} records in must be there, but {path} is not.", hint=hint
        )

    def next_step(self) -> str:
        """Return the command that brings the study nearer to a champion."""
        if self.candidates() is not None:
            return f"let its rule decide with `loraxs-search promote {self.name}`"
        if self.is_running():
            return f"wait for the search to end, and watch it with `loraxs-search status {self.name}`"
        return f"continue with `loraxs-search resume {self.name}`"


def kept_adapter(name: str) -> Path | None:
    """Return the folder of an adapter that a study of this machine has kept; None if no name begins so.

    Args:
        name: `STUDY/TRIAL`.
    Raises:
        StudyError: there is no such study, or it has not kept that trial's adapter.
    """
    study, slash, trial = name.partition("/")
    if not study or not slash or study.startswith((".", "~")):
        return None
    if study not in (studies := list_studies()):
        hint = f"STUDY/TRIAL is a trial of a study on this machine; write ./{name} for the folder"
        raise StudyError(unknown_name("study", study, studies), hint=hint)
    adapters = StudyFolder.open(study).adapters_path
    kept = sorted(path.parent.name for path in adapters.glob("*/manifest.json"))
    if trial not in kept:
        hint = f"a search keeps the adapters of its best trials, at its end: see `loraxs-search status {study}`"
        raise StudyError(unknown_name(f"{study}/TRIAL", trial, kept), hint=hint)
    return adapters / trial
