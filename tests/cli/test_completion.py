"""Completion as a shell asks for it: verbs and options. What a Tab loads is in test_cli_imports.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from loraxs_search.cli._main import run


@pytest.fixture
def offered(monkeypatch, capsys):
    """What is offered for a line whose last word is not finished, in this process."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_LORAXS_SEARCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"loraxs-search {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit) as ended:
            run([])
        said = capsys.readouterr()
        assert (ended.value.code, said.err) == (0, "")
        return said.out.split()

    return ask


def test_verbs_and_options_are_offered(offered):
    assert offered("la") == ["launch"]
    assert "--set" in offered("launch --se")


def test_a_line_that_is_wrong_is_completed_with_nothing_and_no_error(offered):
    for line in ("lauch mo", "show --nothing ", "status nope mo"):
        assert offered(line) == []


# ---- installed in a shell --------------------------------------------------------------------------------------------
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_with_the_script_that_is_shown(tmp_path):
    """The shown script, in a real shell: what Tab would insert."""
    command = tmp_path / "loraxs-search"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m loraxs_search "$@"\n')
    command.chmod(0o755)
    script = f"""
eval "$({command} --show-completion bash)"
COMP_WORDS=({command} finis) COMP_CWORD=1
_loraxs_search_completion {command}
echo "${{COMPREPLY[@]}}"
"""
    variables = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=variables, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "finish\n", "")


def test_help_has_a_short_form(say):
    for line in (("-h",), ("launch", "-h"), ("spaces", "-h"), ("spaces", "show", "-h")):
        assert say(*line).ok.startswith("Usage: loraxs-search")
    assert "--install-completion" in say("--help").ok
