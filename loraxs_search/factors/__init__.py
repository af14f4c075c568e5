"""Frozen factors A and B of a base weight: computed once, stored on disk by content, identified by fingerprint."""
