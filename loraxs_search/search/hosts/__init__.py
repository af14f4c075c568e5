"""The actors of a search: hosts, their directory, the study keeper."""
