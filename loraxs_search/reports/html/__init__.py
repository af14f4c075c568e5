"""The report of a study: one HTML file with all that its journal says, which opens anywhere without a network.

`facts.py` reads a study once. Each class of `figures/` draws one question about it with Optuna and plotly. `summary.py`
and `tables.py` say the rest in words and numbers, and `page.py` puts all into the template.
"""
