"""Faults made on purpose: what breaks, and how records are held together.

records.py   journal and MLflow of a study against each other
world.py     a home, a space and the command line in processes of their own
nodes.py     Ray nodes as processes, on this host or in boxes
stores.py    MLflow on PostgreSQL and S3
disks.py     small and read-only file systems
chaos.py     many of them at once, at random, while people search, promote and pull; kinds.py has the faults,
             arena.py is where, history.py what happened, and whether it may have
"""
