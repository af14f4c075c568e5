"""What proposes params: Optuna's samplers, over the trials of a study as its log has them.

Nothing here is kept on disk: `StudyTrials` reads the log, and a proposal is an event in it before anything else has it.
"""
