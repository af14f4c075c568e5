"""Ray Tune and Optuna: proposing trials, stopping them, and the slots that they run in."""
