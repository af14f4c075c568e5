"""The one append-only log of a study, `journal.jsonl`: typed events, one appender, and readers with an offset each.

Everything that happens in a study is written here before anything acts on it. What is known of a search follows from
its events: the trials (`StudyLog`), the sampler's study, MLflow's runs, and what watchers are shown.
"""
