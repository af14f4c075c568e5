"""The actors of a search: hosts, their directory, the snapshot store."""
