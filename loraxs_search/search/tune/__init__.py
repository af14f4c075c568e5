"""Ray Tune and Optuna: proposing trials, stopping them, and the process of a trial."""
