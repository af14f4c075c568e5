"""For people: Python that finds the base of an adapter as its search did. Light.

A base that an installed distribution carries may have other weights than the hub's model of its id: they are rounded in
a GGUF file. There the code asks for that very folder.
"""

from __future__ import annotations

from loraxs_search.records import BaseModelRef


def finding_code(base: BaseModelRef) -> str:
    """Return the lines that must run before `base_argument` means something; empty where the base's id says it."""
    if base.package is None:
        return ""
    sha256 = f', sha256="{base.sha256}"' if base.sha256 else ""
    return f"""from loraxs_search.base_model import locate
from loraxs_search.records import BaseModelRef
folder = locate(BaseModelRef("{base.id}", package="{base.package}"{sha256})).path
"""


def base_argument(base: BaseModelRef) -> str:
    """Return what `from_pretrained` is given first."""
    return f'"{base.id}"' if base.package is None else "folder"


def revision_argument(base: BaseModelRef) -> str:
    """Return what `from_pretrained` is given last; empty where there is no commit."""
    return f', revision="{base.revision}"' if base.revision and base.package is None else ""


def where_base_is(base: BaseModelRef) -> str:
    """Return the condition under which the code runs."""
    if base.package is None:
        return "where the hub or its cache has the base"
    return (
        f"where the Python package `{base.package}` is installed. The base's weights are those in it: the hub's may"
        " differ, and this adapter fits no others"
    )
