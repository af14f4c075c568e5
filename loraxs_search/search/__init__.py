"""The search: Ray Tune schedules, Optuna samples, hosts train, one ledger records."""
