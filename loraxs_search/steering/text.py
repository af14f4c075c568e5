"""Commands as people type them into a tag: `stop 00003 --now`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from loraxs_search.errors import CommandError, one_of, shortened
from loraxs_search.records import Command, Scalar
from loraxs_search.steering import Verb, get_verb


def trial_name(text: str) -> str:
    """Return a trial's id as studies have it: 3 and 00003 are the same."""
    return f"{int(text):05d}" if text.isascii() and text.isdigit() else text


def parse(text: str, command_id: str, own_trial: str | None = None) -> Command:
    """Return the command that a text is: a verb, trials, and options as on the command line.

    What cannot be read becomes a command that says why, so that it is answered like any other.

    Args:
        own_trial: The trial whose run the text stands at: it is meant where the text names none.
    """
    try:
        words = shlex.split(text)
        if not words:
            raise CommandError("A command must begin with a verb, but got nothing.", hint="such as `stop`")
        verb = get_verb(words[0])
        read = _Words(verb)
        read.take(iter(words[1:]))
    except ValueError as error:  # a quotation mark is missing
        return Command(command_id, text, malformed=f"A command must have its quotes closed, but got {text!r}: {error}.")
    except CommandError as error:
        return Command(command_id, text, malformed=" ".join(filter(None, (error.message, error.hint))))
    trials = read.trials or ([own_trial] if own_trial and verb.trials != "none" else [])
    return Command(command_id, verb.name, tuple(dict.fromkeys(trials)), read.arguments, read.params)


@dataclass
class _Words:
    """What the words behind a verb come to."""

    verb: Verb
    trials: list[str] = field(default_factory=list)
    arguments: dict[str, Scalar] = field(default_factory=dict)
    params: dict[str, Scalar] = field(default_factory=dict)

    def take(self, words: Iterator[str]) -> None:
        for word in words:
            if not word.startswith("--"):
                self.trials.append(trial_name(word))
                continue
            name, given, value = word[2:].partition("=")
            if name == "set" and self.verb.takes_params:
                pairs = [value] if given else [next(words, "")]
                self.params |= read_params(pairs)
            elif name not in self.verb.options:
                known = one_of([f"--{option}" for option in self._known()], word) or "none"
                raise CommandError(f"`{self.verb.name}` takes these options: {known}, but got {word}.")
            elif self.verb.options[name] is bool:
                self.arguments[name] = True
            else:
                self.arguments[name] = self._value(name, value if given else next(words, ""))

    def _known(self) -> list[str]:
        return [*self.verb.options, *(["set"] if self.verb.takes_params else [])]

    def _value(self, name: str, text: str) -> Scalar:
        kind = self.verb.options[name]
        try:
            return kind(text)
        except ValueError as error:
            raise CommandError(
                f"`--{name}` must be {'a whole number' if kind is int else 'a number'}, but got {shortened(text)}."
            ) from error


def read_params(pairs: Sequence[str]) -> dict[str, Scalar]:
    """Return what `--set NAME=VALUE` gives: numbers, true and false as such, else text.

    Raises:
        CommandError: one is no pair.
    """
    params: dict[str, Scalar] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise CommandError(f"`--set` must be NAME=VALUE, but got {shortened(pair)}.")
        params[name] = _scalar(value)
    return params


def _scalar(text: str) -> Scalar:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool) else text
