"""A server of adapters over HTTP: one base, one bank, adapters by task name, followed as champions move.

It is built of an engine that needs no HTTP (`engine`, `served_models`) and an ASGI application above it (`app`), whose
libraries are those of the extra `serve`.
"""
