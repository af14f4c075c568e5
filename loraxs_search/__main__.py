from __future__ import annotations

from loraxs_search.cli._main import main

main()
