"""The search: Ray Tune schedules, Optuna samples, hosts train, one log records."""
