"""``python -m bench.serving``: one run, 35 minutes on two cores. The last line is JSON; exit code 1 if a goal was missed.

Part 1, modes interleaved: each prompt cold without the connector, with it and, in some starts, with LMCache; then warm from host
memory. The engines are started several times, since how fast a process is differs from start to start. Part 2: the engine with
the connector is ended and comes back with its disk. Part 3: time between tokens. Part 4: engines that never saw a prompt, with
the store that the first ones filled. Then what needs no server: copy, index, lookup.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from bench.serving import judge
from bench.serving.client import tokens_of
from bench.serving.engines import Stage
from bench.serving.judge import Figure, paired, paired_by_start
from bench.serving.latency import Latency, rare, typical
from bench.serving.rounds import Prompt, Rounds
from e2e.demo.steps import DOCUMENT, stopwatch
from testkit.engine import CONNECTOR, ENGINE_PYTHON, MODEL_NAME, ROOT
from testkit.host import describe

ALIGNED_TOKENS = 12 * 256 + 1
"""LMCache keeps chunks of 256 tokens, and the last token of a prompt is always computed: its rounding costs nothing here."""
Say = Callable[[str], None]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="bench.serving", description="Figures of engines with and without the pool.")
    parser.add_argument("--starts", type=int, default=6, help="of vLLM alone and with the pool, side by side")
    parser.add_argument("--lmcache", type=int, default=2, help="of these starts, those with LMCache beside them")
    parser.add_argument("--prompts", type=int, default=3, help="prompts of a document per start")
    parser.add_argument("--aligned", type=int, default=3, help=f"prompts of {ALIGNED_TOKENS} tokens")
    parser.add_argument("--fresh", type=int, default=3, help="starts of a fresh engine")
    parser.add_argument("--streams", type=int, default=24, help="streaming requests per condition")
    options = parser.parse_args()
    if options.starts < 1:
        parser.error("--starts: at least 1, the other parts need what these engines stored")
    say, load = stopwatch(), os.getloadavg()[1]
    alone = _alone(say)  # first: a mistake in one of them shows at once
    with Stage() as stage:
        say(f"engines start; logs in {stage.folder}")
        document, rounds = DOCUMENT.read_text(), Rounds(stage, say)
        prompts: list[Prompt] = []
        for start in range(1, options.starts + 1):
            engines = ["none", "pool", *["lmcache"][: start > options.starts - options.lmcache]]
            stage.start(*engines)
            say(f"start {start} of {options.starts}: {', '.join(engines)} serve")
            for number in range(1, options.prompts + 1):
                prompts.append(Prompt(f"start {start}: {number}", f"Round {start}.{number}.\n\n{document}"))
                rounds.cold_and_warm(prompts[-1], engines)
            if start < options.starts:
                stage.end(*engines)
        text = tokens_of(stage.url("none"), MODEL_NAME, document)
        for number in range(1, options.aligned + 1):
            aligned = Prompt(f"aligned: {number}", [1000 + number, *text[: ALIGNED_TOKENS - 1]])
            rounds.cold_and_warm(aligned, engines[1:])
        stage.end(*engines[1:])
        stage.start("reborn")
        say("the engine with the pool is back in a new process")
        for prompt in prompts:
            rounds.from_tier(prompt, "reborn", "disk")
        latency = Latency(stage, text, say)
        latency.prepare()
        for _ in range(options.streams):
            latency.repeat()
        stage.end("reborn")
        for number in range(options.fresh):
            stage.start("fresh")
            first = number % len(prompts)
            for place, prompt in enumerate([*prompts[first:], *prompts[:first]]):
                rounds.from_tier(prompt, "fresh", "remote", "" if place else ", first hit")
            stage.end("fresh")
    return _report(rounds, latency, alone, load)


def _alone(say: Say) -> dict[str, Figure]:
    """What is measured without a server, each in a process of its own."""
    found = {}
    for key, module, python in (
        ("copy_share", "bench.copy", sys.executable),
        ("index_bytes_per_chunk", "bench.index", sys.executable),
        ("lookup_8000_ms", "bench.engine.lookup", str(ENGINE_PYTHON)),
    ):
        environment = os.environ | {"PYTHONPATH": f"{CONNECTOR}:{ROOT}"}
        done = subprocess.run(
            [python, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        try:
            content: Any = json.loads(done.stdout.splitlines()[-1])[key]
            found[key] = judge.from_json(content)
            say(f"{key} {found[key].median}")
        except (IndexError, ValueError, KeyError):
            raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr[-2000:]}") from None
    return found


def _report(rounds: Rounds, latency: Latency, alone: dict[str, Figure], load: float) -> int:
    seconds, gaps = rounds.seconds, latency.gaps
    cold, theirs = seconds["cold none"], seconds["memory lmcache"]
    documents = {prompt for prompt, _ in cold}
    warm = [each for each in seconds["memory pool"] if each[0] in documents]
    aligned = [each for each in seconds["memory pool"] if each[0] not in documents]
    judged = {
        "cold_ratio": paired_by_start(seconds["cold pool"], cold),
        "warm_memory_ratio": paired(warm, cold),
        "warm_disk_ratio": paired(seconds["disk reborn"], cold),
        "remote_ratio": paired(seconds["remote fresh, first hit"], cold),
        "vs_lmcache_mp": paired(warm, theirs),
        "itl_median_ratio": typical(gaps["busy"].seconds, gaps["quiet"].seconds),
        "itl_p99_ratio": rare(gaps["busy"], gaps["quiet"]),
        **alone,
    }
    beside = {
        "vs_lmcache_mp_aligned": paired(aligned, theirs),
        "lmcache_cold_ratio": paired(seconds["cold lmcache"], cold),
        "remote_ratio_later_hits": paired(seconds["remote fresh"], cold),
        "itl_median_ratio_of_nothing": typical(gaps["again"].seconds, gaps["quiet"].seconds),
        "itl_median_ratio_of_stores_alone": typical(gaps["stores"].seconds, gaps["quiet"].seconds),
        "itl_median_ratio_to_vllm_alone": typical(gaps["quiet"].seconds, gaps["alone"].seconds),
        "others_first_token_ratio_to_vllm_alone": typical(gaps["stores"].others_s, gaps["alone"].others_s),
        "itl_p99_ratio_of_stores_alone": rare(gaps["stores"], gaps["quiet"]),
    }
    figures, more = ({k: f for k, f in some.items() if f is not None} for some in (judged, beside))
    print(f"\n{judge.seconds_table(seconds)}\n\n{judge.table(figures)}\n\n{judge.plain_table(more)}\n")
    missed = judge.missed(figures)
    print("bench-engine: " + (f"missed: {', '.join(missed)}" if missed else "ok"))
    line = {key: judge.as_json(figure) for key, figure in (figures | more).items()}
    others = {condition: sum(map(len, found.others_s)) for condition, found in gaps.items()}
    print(json.dumps({**line, "itl_others": others, "load_before": load, "machine": describe()}))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
