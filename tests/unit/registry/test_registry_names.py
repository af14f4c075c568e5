from __future__ import annotations

import pytest

from loraxs_search.errors import RegistryError
from loraxs_search.registry.store import AdapterName


def test_the_three_forms_and_no_others():
    for text, name in (
        ("movie-reviews", AdapterName("movie-reviews", "champion", None)),
        ("movie-reviews@champion-tiny", AdapterName("movie-reviews", "champion-tiny", None)),
        ("glue.sst_2:12", AdapterName("glue.sst_2", None, 12)),
    ):
        assert AdapterName.parse(text) == name
        assert AdapterName.parse(str(name)) == name
    for text in ("", "../x", "-x", "é", "x" * 201, "t:0", "t:x", "t:1:2", "t@", "t@a b", "t@latest", "t@v3", "t@x@y"):
        with pytest.raises(RegistryError, match="must"):
            AdapterName.parse(text)
