"""Faults made on purpose: what breaks, and how records are held together.

world.py     a home, a space and the command line in processes of their own; log and MLflow against each other
nodes.py     Ray nodes as processes, on this host or in boxes
stores.py    MLflow on PostgreSQL and S3; small and read-only file systems
chaos.py     many faults at once, at random, while people search, promote and pull;
             arena.py is where, history.py what happened, and whether it may have
"""
