"""Thousands of adapters of one base, held in memory together and used side by side in one batch."""
