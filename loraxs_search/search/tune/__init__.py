"""Ray Tune and Optuna: who is proposed, who goes on, what a trial's process does."""
