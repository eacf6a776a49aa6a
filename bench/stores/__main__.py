"""``make bench-stores``: about a minute. The last line is JSON; exit code 1 if a goal was missed.

Each part runs in a process of its own with the environment that its clients need, and times its two ways in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from testkit.engine import CONNECTOR, ROOT
from testkit.host import describe

LMCACHE_PYTHON = ROOT / ".venvs/lmcache/bin/python"
GOALS = {
    "redis_set_share": 0.85,
    "redis_get_share": 0.85,
    "redis_vs_redis_py": 1.7,
    "lm_put_ratio": 50.0,
    "mooncake_share": 0.9,
    "disk_share": 0.9,
}
"""At least, in the worst row of each."""


def main() -> int:
    """Entry point."""
    rows = [
        *_run("bench.stores.resp", Path(sys.executable)),
        *_run("bench.engine.lm", LMCACHE_PYTHON),
        *_run("bench.stores.mooncake", Path(sys.executable)),
        *_disk(),
    ]
    print(f"{'':42} {'n':>3} {'ours':>7} {'theirs':>7} {'ratio, quartiles':>24} {'goal':>6} {'server':>6}")
    figures: dict[str, Any] = {}
    for row in rows:
        low, median, high = row["quartiles"]
        goal = GOALS[row["figure"]]
        spread = f"{median:.2f} ({low:.2f} - {high:.2f})"
        server = "" if row.get("server_busy") is None else f"{row['server_busy']:.2f}"
        print(
            f"{row['name']:42} {row['n']:3} {row['ours']:7.2f} {row['theirs']:7.2f} {spread:>24} {goal:>6} {server:>6}  "
            f"{'OK' if median >= goal else 'MISSED'}"
        )
        if row["figure"] not in figures or median < figures[row["figure"]]["quartiles"][1]:
            figures[row["figure"]] = {"quartiles": row["quartiles"], "n": row["n"], "case": row["name"]}
    print("ours and theirs in GB/s; server: share of our time that the server's thread was on a processor\n")
    missed = [figure for figure, goal in GOALS.items() if figures[figure]["quartiles"][1] < goal]
    if missed:
        print(f"bench-stores: missed: {', '.join(missed)}")
    print(json.dumps(figures | {"rows": rows, "machine": describe()}))
    return int(bool(missed))


def _run(module: str, python: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _last_line(module, python)
    return rows


def _disk() -> list[dict[str, Any]]:
    """The slab's rows, from the benchmark that it has already."""
    cases = _last_line("bench.disk", Path(sys.executable))["cases"]
    return [{"figure": "disk_share", "name": f"slab {name} / O_DIRECT loop", **case} for name, case in cases.items()]


def _last_line(module: str, python: Path) -> Any:
    """Raises:
    RuntimeError: with what the part said.
    """
    print(f"{module} ...", file=sys.stderr)
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, (CONNECTOR, ROOT)))}
    done = subprocess.run(
        [python, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr[-2000:]}") from None


if __name__ == "__main__":
    sys.exit(main())
