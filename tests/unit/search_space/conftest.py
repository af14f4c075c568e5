from __future__ import annotations

import pytest

# Every section and value form once, sound from end to end; tests change single lines of it.
TEXT = """\
task:
  name: reviews
  kind: sequence-classification
  data:
    data_files: {train: train.jsonl}
  columns: {text: sentence, label: label}
  labels: ["no", "yes"]
  metrics: [accuracy, f1]
base_model: org/name
parameters:
  rank: {int: [4, 16], step: 4}
  scale: {uniform: [0.5, 2.0], step: 0.25}
  target_modules: {choice: [attention, [query, value], all-linear@last-2]}
  learning_rate: {log_uniform: [1e-4, 1e-2]}
  weight_decay: 0
  sigma: {choice: [input, sqrt], when: {rank: [4, 8]}}
search:
  trials: 4
  time_budget: 10m
promotion:
  metric: f1
"""


@pytest.fixture(scope="session")
def text():
    return TEXT


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the data file that `text` names."""
    path = tmp_path_factory.mktemp("spaces")
    (path / "train.jsonl").write_text('{"sentence": "fine", "label": 1}\n')
    return path


@pytest.fixture(scope="session")
def parse(folder):
    """Check a space given as text, as if it stood in `folder`/space.yaml."""
    from loraxs_search.search_space.load import parse_space

    def check(text, *overrides):
        return parse_space(text, source="space.yaml", folder=folder, overrides=overrides)

    return check


@pytest.fixture(scope="session")
def faults(parse):
    """Return the fault lines of a text, without the heading."""
    from loraxs_search.errors import UsageError

    def check(text, *overrides):
        with pytest.raises(UsageError) as caught:
            parse(text, *overrides)
        return caught.value.message.splitlines()[1:]

    return check
