"""What lies in the state folder, whether anybody needs it, and removing what nobody does.

Each kind of thing that the product writes there and may remove is a class in `kinds.py`. What no kind names stays for
good: MLflow's store with its artifacts, the sequence numbers seen, and the spaces and rows of `init`.
"""
