"""Frozen dataclasses that cross rooms. Plain values only: no torch, no mlflow, no behaviour beyond what they are."""
