from __future__ import annotations

import subprocess
import sys

import pytest

from loraxs_search.errors import UsageError
from loraxs_search.tasks import METRICS, catalogue_names, catalogue_task, checked


def test_names():
    assert catalogue_names() == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]


@pytest.mark.parametrize("name", catalogue_names())
def test_each_entry_is_a_whole_task(name):
    task = catalogue_task(name)
    assert (task.name, task.source.hub, task.source.config) == (name, "nyu-mll/glue", name)
    assert task.metric == task.metrics[0]
    assert task.direction == METRICS[task.metric].direction
    assert "test" not in task.source.splits
    assert checked(task).model.num_outputs == max(1, len(task.labels))


def test_entries_that_differ_from_the_rest():
    assert catalogue_task("mnli").source.splits["validation"] == "validation_matched"
    assert catalogue_task("stsb").kind == "regression"
    assert catalogue_task("rte").labels == ("entailment", "not_entailment")


def test_unknown_name_lists_the_nearest_first():
    with pytest.raises(UsageError, match="must be one of: sst2,"):
        catalogue_task("sst-2")


def test_catalogue_metrics_and_batches_need_no_torch():
    code = (
        "import sys; from loraxs_search.tasks import METRICS, catalogue_task, epoch_batches; catalogue_task('cola');"
        "sys.exit(bool({'torch', 'datasets', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
