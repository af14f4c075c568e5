"""Launch and resume: one search from an empty cluster to scored candidates."""
