"""loraxs-search report STUDY"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraxs_search.cli._completion import studies
from loraxs_search.studies import StudyFolder


def command(
    study: Annotated[str, typer.Argument(help="Name of the study, also of one that runs.", autocompletion=studies)],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The file; default: report.html in the study's folder.", dir_okay=False),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the report of a study: one HTML file, for any browser.

    It says what was found and whether that beats the yardsticks. It has the leaderboard, learning curves, quality
    against bytes, importances, parallel coordinates, and the score over each parameter. Then come trials on hosts,
    devices at work, what early stopping saved, the cost, failures with reasons, and the command to repeat the search.

    Plotly's script is in the file, which is why it takes 5 MB. A figure that a study has too little for says why.

    A search writes its report when it ends, and MLflow keeps it with the run of the search. Of a running study, the
    report says that it runs, and of which moment it is. Nothing is trained.

    The file's path is printed.

    Example: loraxs-search report reviews --open
    """
    from loraxs_search.reports.html import write_report

    path = write_report(StudyFolder.open(study), output)
    print(path)
    if show:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
