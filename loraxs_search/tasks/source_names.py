"""The names of a task's data, as people know them."""

from __future__ import annotations

from loraxs_search.records import DataSource


def source_names(source: DataSource) -> list[str]:
    """Return the data sets of the hub or the files that rows come from; files without their folders."""
    if source.hub:
        names = ["/".join(filter(None, (source.hub, source.config)))]
    else:
        names = sorted({path.rpartition("/")[2] for path in source.data_files.values()})
    elsewhere = sorted(source.elsewhere.items())
    return names + [f"{'/'.join(filter(None, (it.hub, it.config)))} ({split})" for split, it in elsewhere]
