"""What a server is started with: what it serves and how, and its API keys from a file. Light: without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from loraxs_search.errors import UsageError

ENV_KEY = "LORAXS_FALLBACK_KEY"  # the key that this server shows to a fallback


class ServerOptions(BaseModel):
    """What a server serves, and how: the same in a process of `serve` and in a replica on Ray Serve.

    Args:
        tasks: Tasks of the registry, all on one base; empty means every task of the registry on that base.
        tracking_uri: The registry; None means what the server's environment says.
        keep: Folder, on each node, for rows that are not answered surely; `keep_mb` for each API key.
        questions: Task of each question's name, for decisions.
        model_aliases: Names of a model that mean all tasks.
        fallback: Address of the server that is asked what no task answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = ()
    tracking_uri: str | None = None
    max_bytes: ByteSize | None = None
    max_rows: int = Field(1024, ge=1)
    queue: int = Field(2048, ge=1)
    keep: str | None = None
    keep_mb: int = Field(64, ge=1)
    questions: dict[str, str] = {}
    model_aliases: tuple[str, ...] = ()
    fallback: str | None = None


def read_keys(path: Path) -> dict[str, frozenset[str]]:
    """Return the keys of a file, one in each line, with the tasks named behind it; without any, it may ask all.

    Raises:
        UsageError: the file cannot be read, has no key, or one twice.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`--api-key-file` must be a text file that can be read, but {path}: {error}.") from error
    keys = dict[str, frozenset[str]]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, *tasks = line.split()
        if not (key.isascii() and key.isprintable()) or key in keys:
            law = "Keys of `--api-key-file` must be printable ASCII, and differ from each other"
            raise UsageError(f"{law}, but one does not: {path}, line {number}.", hint="a line is KEY, or KEY TASK TASK")
        keys[key] = frozenset(tasks)
    if not keys:
        raise UsageError(f"`--api-key-file` must have a key at least, but {path} has none.")
    return keys
