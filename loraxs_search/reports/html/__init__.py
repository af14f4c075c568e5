"""The report of a study: one HTML file with all that its journal says, which opens anywhere without a network.

`facts.py` reads a study once. Each class of `figures/` draws one question about it with Optuna and plotly. `summary.py`
and `tables.py` say the rest in words and numbers, and `page.py` puts all into the template.
"""

from __future__ import annotations

from loraxs_search.reports.html.facts import ReportFacts, read_facts
from loraxs_search.reports.html.figures import sections
from loraxs_search.reports.html.page import REPORT_FILE, report_page, write_report

__all__ = ["REPORT_FILE", "ReportFacts", "read_facts", "report_page", "sections", "write_report"]
