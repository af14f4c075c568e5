from __future__ import annotations

import pytest

from loraxs_search.errors import RegistryError
from loraxs_search.registry.versions import AdapterName


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("movie-reviews", AdapterName("movie-reviews", "champion", None)),
        ("movie-reviews@champion-tiny", AdapterName("movie-reviews", "champion-tiny", None)),
        ("glue.sst_2:12", AdapterName("glue.sst_2", None, 12)),
    ],
)
def test_the_three_forms(text, name):
    assert AdapterName.parse(text) == name
    assert AdapterName.parse(str(name)) == name


TASKS = ["", "a/b", "../x", "-x", "a b", "é", "x" * 201]
VERSIONS = ["t:0", "t:x", "t:", "t:1:2", "t@", "t@a b", "t@latest", "t@v3", "t@x@y"]


@pytest.mark.parametrize("text", [*TASKS, *VERSIONS])
def test_other_forms_are_refused(text):
    with pytest.raises(RegistryError, match="must"):
        AdapterName.parse(text)
