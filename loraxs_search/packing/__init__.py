"""Trial hosts: the frozen base shared by many trials."""
