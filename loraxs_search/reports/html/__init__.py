"""The report of a study: one HTML file with all that its journal says, which opens anywhere without a network.

`summary.py` reads a study once, and says what it found. Each function of `figures.py` draws one question about it with
plotly. `page.py` has the tables, and puts all into the template.
"""
