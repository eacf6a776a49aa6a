"""The connector at a GPU's pace: its estimate of the engine, and whether a store pays.

    make bench-paced

Two engines of the same profile run side by side, one with a memory tier and a Redis, one without a
connector, and answer in turn. The documents were stored by a third engine that has ended. Between
two rounds everything is forgotten but the Redis, so that each document is loaded or computed. Then
`bench.engine.hangs` measures what hangs cost, and `bench.presence` how long 250 000 wanted keys take.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.spread import quartiles
from testkit.host import describe
from testkit.paced.engine import PacedEngine, engine, tokens
from testkit.paced.profiles import PROFILES, Profile
from testkit.servers import KeyValueServer

DOCUMENT = 2049
"""Tokens of a prompt: whole chunks, and the one that is always computed."""
AT_ONCE = (1, 4, 12)
PROFILE: Profile = dataclasses.replace(PROFILES["llama-8b-thick"], kv_heads=4, head_dim=64, device_tokens=16 * DOCUMENT)
"""8 KiB of KV a token: one document at a time loads faster than it is computed, twelve do not."""


@dataclasses.dataclass
class Figures:
    """What was measured, a value for each round."""

    rate_ratio: list[float] = dataclasses.field(default_factory=list)
    """The connector's estimate of the prefill rate over the rate of the passes."""
    loaded_share: dict[int, list[float]] = dataclasses.field(default_factory=lambda: {n: [] for n in AT_ONCE})
    """By prompts at once: tokens that were loaded over all tokens of the documents."""
    first_token_s: dict[int, dict[str, list[float]]] = dataclasses.field(
        default_factory=lambda: {n: {"store": [], "alone": []} for n in AT_ONCE}
    )
    """By prompts at once and engine: the median of the documents' first tokens."""


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="The connector at a GPU's pace")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement")
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="kvpool-paced-"))
    documents = [tokens(number, DOCUMENT) for number in range(max(AT_ONCE))]
    figures = Figures()
    with KeyValueServer("redis") as store:
        _fill(store, folder, documents)
        with contextlib.ExitStack() as engines:
            asked = {
                "store": engines.enter_context(engine(PROFILE, folder / "model", _config(store, "measured"))),
                "alone": engines.enter_context(engine(PROFILE, folder / "model")),
            }
            for number in range(rounds):
                _warm_up(asked["store"], number, figures)
                for at_once in AT_ONCE:
                    order = list(asked) if number % 2 else list(asked)[::-1]
                    for name in order:
                        _ask(asked[name], name, documents, at_once, figures)
                print(f"round {number + 1} of {rounds}: {json.dumps(dataclasses.asdict(figures))}", flush=True)
    others = _figures_of("bench.engine.hangs", "--rounds", str(rounds)) | _figures_of("bench.presence")
    print(json.dumps(_summary(figures) | others))
    return 0


def _figures_of(module: str, *arguments: str) -> dict[str, object]:
    """Run another benchmark in a process of its own, show what it prints, and return its last line."""
    with subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True) as running:
        last = ""
        for line in running.stdout or ():
            print(line, end="", flush=True)
            last = line
    if not last.startswith("{"):
        sys.exit(f"{module} ended with code {running.returncode} and without figures")
    found: dict[str, object] = json.loads(last)
    return found


def _config(store: KeyValueServer, admission: str) -> dict[str, object]:
    return {"tiers": {"cpu": {"size": "1Gi"}}, "remote": store.remote(), "admission": admission}


def _fill(store: KeyValueServer, folder: Path, documents: Sequence[Sequence[int]]) -> None:
    with engine(PROFILE, folder / "model", _config(store, "always")) as filler:
        filler.generate(documents, concurrency=2, max_tokens=1)
        filler.settle()


def _warm_up(asked: PacedEngine, number: int, figures: Figures) -> None:
    """Let the engine compute a document that no store has, and read what it makes of that."""
    asked.generate([tokens(1000 + number, 2 * DOCUMENT)], max_tokens=16)
    estimate = asked.figure("kvpool:prefill_tokens_per_second")
    (report,) = asked.reports()
    if estimate is not None:
        figures.rate_ratio.append(estimate / report.prefill_tokens_per_s)


def _ask(asked: PacedEngine, name: str, documents: Sequence[Sequence[int]], at_once: int, figures: Figures) -> None:
    asked.forget(tiers=True)
    answers = asked.generate(documents, concurrency=at_once, max_tokens=8)
    figures.first_token_s[at_once][name].append(statistics.median(answer.first_token_s for answer in answers))
    if name == "store":
        cached = sum(answer.cached_tokens for answer in answers)
        figures.loaded_share[at_once].append(cached / sum(map(len, documents)))


def _summary(figures: Figures) -> dict[str, object]:
    ratios = {
        at_once: [a / b for a, b in zip(both["store"], both["alone"], strict=True)]
        for at_once, both in figures.first_token_s.items()
    }
    return {
        "machine": describe(),
        "prefill_rate_over_true": _spread(figures.rate_ratio),
        **{f"loaded_share_{n}_at_once": _spread(values) for n, values in figures.loaded_share.items()},
        **{f"first_token_over_computing_{n}_at_once": _spread(values) for n, values in ratios.items()},
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    low, median, high = quartiles(list(values))
    return {"median": median, "low": low, "high": high}


if __name__ == "__main__":
    sys.exit(main())
