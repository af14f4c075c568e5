"""One way to compute rows of many adapters on one frozen base: to read them, to learn from them, to write behind them.

A lone trial, a pack and a bank use it alike; they differ in whose the rows are. It knows task kinds by their requests,
and methods by what they add to a layer, see `layers.py`.
"""
