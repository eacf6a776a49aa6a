"""What the connector costs a request that hits nothing: time to first token with it over without it.

    make bench-cold

Two engines run side by side with equal thread binding, one with the connector (memory tier and Redis), one without.
They answer in turn, each prompt once, so that both see the same minutes of the machine and every answer is cold. The
next one is asked when the blocks of the last one are in the store: writing them is not the other engine's cost.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

import redis

from e2e.demo.stage import ENGINE_ARGUMENTS
from e2e.demo.steps import DOCUMENT, stopwatch
from testkit.engine import MODEL_NAME
from testkit.engine_facts import facts_of
from testkit.engine_process import EngineProcess
from testkit.host import describe
from testkit.http_client import Answer, ask
from testkit.servers import KeyValueServer, wait_until

ROUNDS = 9
LIMIT = 1.03


def main() -> int:
    """Entry point; the exit code says whether the median of the pairs' ratios is within the limit."""
    say, folder = stopwatch(), Path(tempfile.mkdtemp(prefix="kvpool-bench-"))
    document = DOCUMENT.read_text()
    with KeyValueServer("redis") as store:
        config = folder / "kvpool.yaml"
        remote = {"type": "redis", "host": store.host, "port": store.port}
        config.write_text(json.dumps({"tiers": {"cpu": {"size": "1Gi"}}, "remote": remote}))
        engines = {
            "with": EngineProcess("with", folder, config=config, arguments=ENGINE_ARGUMENTS),
            "without": EngineProcess("without", folder, config=None, arguments=ENGINE_ARGUMENTS),
        }
        try:
            for engine in engines.values():
                engine.start()
            for engine in engines.values():
                engine.serving()
            say(f"both engines serve; logs in {folder}")
            for engine in engines.values():
                ask(engine.url, MODEL_NAME, "Say hello. " * 200, max_tokens=4)
            parts = redis.Redis(port=store.port)
            facts = facts_of(engines["with"].url)
            expected = int(parts.dbsize())
            seconds: dict[str, list[float]] = {name: [] for name in engines}
            for number in range(ROUNDS):
                order = list(engines)
                random.shuffle(order)  # neither is always the first of a pair
                for name in order:
                    answer = ask(
                        engines[name].url, MODEL_NAME, f"Round {number} of {name}.\n\n{document}", max_tokens=1
                    )
                    _cold(answer)
                    seconds[name].append(answer.ttft_s)
                    if name == "with":
                        expected += facts.parts(answer.prompt_tokens)
                        wait_until("its blocks are in the store", lambda: parts.dbsize() >= expected)  # noqa: B023
                say(f"round {number + 1}: with {seconds['with'][-1]:.3f} s, without {seconds['without'][-1]:.3f} s")
        finally:
            for engine in engines.values():
                engine.end()
    return _report(seconds)


def _cold(answer: Answer) -> None:
    if answer.cached_tokens:
        raise RuntimeError(f"not cold: {answer.cached_tokens} tokens came from a cache")


def _report(seconds: dict[str, list[float]]) -> int:
    pairs = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    ratio = statistics.median(seconds["with"]) / statistics.median(seconds["without"])
    quartiles = statistics.quantiles(pairs, n=4)
    print(f"\n{'':10} {'median':>9} {'lowest':>9} {'highest':>9}")
    for name, values in seconds.items():
        print(f"{name:10} {statistics.median(values):7.3f} s {min(values):7.3f} s {max(values):7.3f} s")
    figures = {
        "cold_ratio": round(ratio, 3),
        "pair_ratio_median": round(statistics.median(pairs), 3),
        "pair_ratio_quartiles": [round(quartile, 3) for quartile in quartiles],
        "n": len(pairs),
        "load_before": os.getloadavg()[2],
        "machine": describe(),
    }
    print("bench-figures: " + json.dumps(figures))
    return int(min(ratio, statistics.median(pairs)) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
