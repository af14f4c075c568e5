"""What several folders of tests, and the benchmarks, are made with.

plugins.py    distributions that bring entries of a seam
boxes.py      hosts in namespaces, with power and cables; cable.py: a slow or lossy one
slurm.py      Slurm in boxes
ports.py      free ports of this machine
shared.py     folders that one worker of a session makes and all use
shell.py      the command line as a user starts it
in_process.py  the same in this process
servers.py    programs on a port: MLflow, PostgreSQL
reboxes.py      hosts in namespaces, with power and cables; cable.py: a slow or lossy one
slurm.py      Slurm in boxes
ports.py    reports of trials that never ran
spaces.py     spaces that search in seconds
studies.py    studies without a search
toys.py       adapters of no meaning, sealed as real ones are
"""
