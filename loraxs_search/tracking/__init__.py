"""MLflow runs: one parent run per search, one child per trial, recorded from a study's log."""
