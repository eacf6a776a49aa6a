"""Never worse than no cache: time to first token with a store behind a link of 1, 10 and 100 MB/s, over computing.

    make bench-admission

Three engines with equal thread binding: one fills the store at full speed, one reads it through the slow link, one has none.
The last two answer in turn. Each prompt is new to them, so every answer is either loaded or computed.
"""

from __future__ import annotations

import argparse
import json
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
from testkit.http_client import ask
from testkit.servers import KeyValueServer, wait_until
from testkit.slow_link import SlowLink

SPEEDS = (1, 10, 100)
LIMIT = 1.05
"""Of the medians' ratio: two engines that do the same differ by that much on a shared machine."""


def main() -> int:
    """Entry point; the exit code says whether all speeds are within the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="prompts per speed")
    rounds = parser.parse_args().rounds
    say, folder = stopwatch(), Path(tempfile.mkdtemp(prefix="kvpool-bench-"))
    document = DOCUMENT.read_text()
    prompts = {speed: [f"Link {speed}, copy {n}.\n\n{document}" for n in range(rounds)] for speed in SPEEDS}
    with KeyValueServer("redis") as store, SlowLink(store.host, store.port, 1e6) as link:
        engines = {
            "fills": _engine("fills", folder, store.port),
            "slow": _engine("slow", folder, link.port),
            "none": EngineProcess("none", folder, config=None, arguments=ENGINE_ARGUMENTS),
        }
        seconds: dict[int, dict[str, list[float]]] = {speed: {"slow": [], "none": []} for speed in SPEEDS}
        cached: dict[int, int] = dict.fromkeys(SPEEDS, 0)
        try:
            for engine in engines.values():
                engine.start()
            for engine in engines.values():
                engine.serving()
                ask(engine.url, MODEL_NAME, "Say hello. " * 200, max_tokens=4)
            say(f"three engines serve; logs in {folder}")
            _fill(engines["fills"], store, [prompt for some in prompts.values() for prompt in some])
            engines["fills"].end()
            say("the store is filled")
            for speed in SPEEDS:
                link.set_rate(speed * 1e6)
                for prompt in prompts[speed]:
                    order = ["slow", "none"]
                    random.shuffle(order)
                    for name in order:
                        answer = ask(engines[name].url, MODEL_NAME, prompt, max_tokens=1)
                        seconds[speed][name].append(answer.ttft_s)
                        cached[speed] += answer.cached_tokens
                say(f"{speed} MB/s: {_row(seconds[speed])}")
        finally:
            for engine in engines.values():
                engine.end()
    return _report(seconds, cached)


def _engine(name: str, folder: Path, port: int) -> EngineProcess:
    config = folder / f"{name}.yaml"
    remote = {"type": "redis", "host": "127.0.0.1", "port": port}
    config.write_text(json.dumps({"tiers": {"cpu": {"size": "2Gi"}}, "remote": remote}))
    return EngineProcess(name, folder, config=config, arguments=ENGINE_ARGUMENTS)


def _fill(engine: EngineProcess, store: KeyValueServer, prompts: list[str]) -> None:
    parts = redis.Redis(port=store.port)
    for prompt in prompts:
        before = int(parts.dbsize())
        answer = ask(engine.url, MODEL_NAME, prompt, max_tokens=1)
        facts = facts_of(engine.url)
        whole = facts.parts(answer.prompt_tokens) - answer.cached_tokens // facts.chunk_tokens
        wait_until("its parts are in the store", lambda: parts.dbsize() >= before + whole, 60)  # noqa: B023


def _row(seconds: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(values):.3f} s" for name, values in seconds.items())


def _report(seconds: dict[int, dict[str, list[float]]], cached: dict[int, int]) -> int:
    figures: dict[str, object] = {"machine": describe()}
    worst = 0.0
    print(f"\n{'link':>9} {'with store':>12} {'no cache':>12} {'ratio':>7} {'worst':>7}  tokens from the store")
    for speed, both in seconds.items():
        pairs = [a / b for a, b in zip(both["slow"], both["none"], strict=True)]
        ratio = statistics.median(both["slow"]) / statistics.median(both["none"])
        worst = max(worst, min(ratio, statistics.median(pairs)))
        print(
            f"{speed:>4} MB/s {statistics.median(both['slow']):>10.3f} s {statistics.median(both['none']):>10.3f} s "
            f"{ratio:>7.3f} {max(pairs):>7.3f}  {cached[speed]}"
        )
        figures[f"{speed}_MB_per_s"] = {"ratio": round(ratio, 3), "pairs": [round(pair, 3) for pair in pairs]}
    print("admission-figures: " + json.dumps(figures))
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
