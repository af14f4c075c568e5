"""The study folder: the one truth about a search, on disk, torch-free and ray-free.

studies/<name>/
    study.json            what is searched, written once, before anything else
    space.yaml            the space as launched
    space.json            the same with every default as it was then
    journal.jsonl         the log: all that happened, one event a line, in order
    mlflow.offset         how far MLflow has followed it
    snapshots/<id>.safetensors   a trial's whole state at its last report, with all its reports in the header
    snapshots/<id>.step-<n>.safetensors   the same at its best report, where the study keeps that
    adapters/<id>/        sealed adapter folders of completed trials and of candidates
    confirmed/            refits, scores on all validation rows, the finalist and its answers to the test rows
    round.json                        how often the search continued after its end
    commands/             commands to the driver that it has not answered yet, one file each
    study.lock            held by the one driver at work

What of it is not rebuilt from the rest can be mirrored in a storage (a shared folder, a bucket) beside a lease.
"""
