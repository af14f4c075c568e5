"""What several folders of tests, and the benchmarks, are made with.

plugins.py    distributions that bring entries of a seam
ports.py      free ports of this machine
shared.py     folders that one worker of a session makes and all use
shell.py      the command line as a user starts it
in_process.py  the same in this process
servers.py    programs on a port: MLflow, PostgreSQL
reports.py    reports of trials that never ran
spaces.py     spaces that search in seconds
studies.py    studies without a search
toys.py       adapters of no meaning, sealed as real ones are
"""
