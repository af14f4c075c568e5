"""Every number on packed trials in one go: the four benchmarks below, one after the other, and their JSON in one file.

    python tests/benchmarks/bench_packed_trials.py --data FOLDER --json FILE

FOLDER holds SST-2 as for `bench_search.py`. A whole search beside the plain recipe (`bench_search.py`), the cost of
each further trial in a pack (`bench_packing.py`), scores packed against alone in the device's own precision
(`bench_agreement.py`), and large bases where there is a GPU (`bench_gpu.py`). Some half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    data = ["--data", str(arguments.data)]
    parts = {"search": data, "packing": ["--rounds", "4", "--warmup", "2"], "agreement": data, "gpu": []}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in parts.items():
            print(f"== {name}", flush=True)
            script, result = Path(__file__).with_name(f"bench_{name}.py"), Path(folder) / f"{name}.json"
            subprocess.run([sys.executable, str(script), *options, "--json", str(result)], check=True)
            found[name] = json.loads(result.read_text())
            arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
