"""Search spaces: YAML -> a checked `Space` that draws params with Optuna and turns them into hyperparameters.

A file has the sections `task`, `base_model`, `parameters` (these three are required), `search` and `promotion`, and may
name a `method` of `loraxs_search.methods`, which has its own parameters; `lora-xs` by default. A parameter is one of

    rank: 8                                     a constant; also {value: 8}
    rank: {choice: [4, 8, 16]}                  one of several
    rank: {int: [4, 64], step: 4}               4, 8, ..., 64; with `log: true` instead of a step, even in the logarithm
    scale: {uniform: [0.5, 4.0], step: 0.5}     a number; without a step, any in the range
    learning_rate: {log_uniform: [1e-4, 1e-2]}  a number, even in the logarithm
    sigma: {choice: [input, sqrt], when: {basis: [top, gaussian], head: full}}

where `when` makes the parameter present only if the others have one of these values; else its default stands.
`target_modules` are group expressions, see `resolve_modules`.

The package imports no torch; Optuna is loaded when a distribution is asked for.
"""
