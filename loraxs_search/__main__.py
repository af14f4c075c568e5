from __future__ import annotations

from loraxs_search.cli import main

main()
