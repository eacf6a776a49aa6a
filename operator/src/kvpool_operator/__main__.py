"""``kvpool-operator``: read the settings, wait for the CRD, run until told to stop.

Each replica watches, fills its caches and answers the webhook. What writes waits until this replica
leads: ``terms`` begin and end with the elector, and ``fence`` holds back every write outside of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from pydantic import ValidationError

from kvpool_operator.api import API_VERSION, PLURAL, Settings
from kvpool_operator.desired.names import FIELD_MANAGER
from kvpool_operator.election.elector import Elector
from kvpool_operator.handlers import engine_looks, health, metrics, scan, watches
from kvpool_operator.handlers.engine_looks import EngineLooks
from kvpool_operator.handlers.health import Readiness
from kvpool_operator.handlers.term import Terms
from kvpool_operator.handlers.turns import Turns
from kvpool_operator.handlers.workers import Reconcile
from kvpool_operator.kube import ApiError, Client, connect
from kvpool_operator.kube.fence import Fence
from kvpool_operator.observe import engine_metrics
from kvpool_operator.observe.api_servers import ApiServers
from kvpool_operator.observe.cache import Cache
from kvpool_operator.observe.consumers import Consumers
from kvpool_operator.observe.dial import Dialer
from kvpool_operator.observe.parents import Parents
from kvpool_operator.observe.pools import Pools
from kvpool_operator.observe.prime import prime
from kvpool_operator.reconcile import Reconciler
from kvpool_operator.webhook.admission import Admission
from kvpool_operator.webhook.keeper import Keeper
from kvpool_operator.webhook.server import Timings, application, serve

_log = logging.getLogger("kvpool_operator")
_WATCHES = "watches"
_CACHES = "pools and their children"
_CONSUMERS = "Pods of others"
_WEBHOOK = "webhook"
_RETRY_SECONDS = 2.0
"""After the API server did not do what the start needs."""
_BURST_SECONDS = 1.0
"""Pods of others that come within this time are one change of their pool."""


def read_settings(path: Path | None) -> Settings:
    """The settings file.

    Raises:
        SystemExit: it can't be used; the message says why.
    """
    if path is None:
        return Settings()
    try:
        return Settings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise SystemExit(f"kvpool-operator: {path}: {error}") from None


async def wait_for_crd(client: Client, stop: asyncio.Event, *, pause: float = 2.0) -> None:
    """kopf looks for resources once, at its start, so the CRD must be there before. Ends early when told to stop."""
    said = ""
    while not stop.is_set():
        try:
            if await client.served(API_VERSION, PLURAL):
                return
            state = f"the API server does not serve {PLURAL}.{API_VERSION}: install the CRD"
        except ApiError as error:
            state = error.message
        if state != said:
            _log.warning("waiting: %s", state)
            said = state
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)


def _identity() -> str:
    """Return a name for this process that none before it had: that of its Pod, and some chance."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


async def run(
    settings: Settings,
    *,
    host: str,
    port: int,
    webhook_port: int,
    stop: asyncio.Event,
    take_signals: Callable[[], None] = lambda: None,
) -> None:
    """Run one replica of the operator, until ``stop``.

    Args:
        take_signals: is called when another has taken the process's signals for itself.
    """
    identity = _identity()
    agent = f"{FIELD_MANAGER} ({identity})"
    fence = Fence()
    election = settings.election
    undelivered_s = election.lease_seconds - election.renew_seconds
    client = connect(agent=agent, fence=fence, undelivered_s=undelivered_s)
    # Of its own, so that no other request is in its way.
    lease_client = connect(agent=agent)
    elector = Elector(lease_client, fence, election, namespace=settings.namespace, identity=identity)
    cache, consumers, timings = Cache(), Consumers(), Timings()
    turns = Turns()
    pools, parents = Pools(client, time.monotonic), Parents(client, time.monotonic)

    def reconciler() -> Reconcile:
        made = Reconciler(client, cache, settings, clock=time.monotonic, consumers_of=consumers.of)
        return made.reconcile

    terms = Terms(reconciler, lambda: {*pools.keys(), *cache.pools()}, count=settings.workers)
    dial = Dialer(settings.probes, ApiServers(client, time.monotonic).hosts)
    looks = EngineLooks(consumers, partial(engine_metrics.ask, dial=dial), terms.add)
    lookers = engine_looks.workers(looks)
    admission = Admission(pools, cache, parents, settings)
    watching = asyncio.Event()
    filled = asyncio.Event()
    readiness = Readiness(_CACHES, _CONSUMERS, *([_WEBHOOK] if settings.webhook.enabled else []))
    try:
        async with health.serve(
            host=host,
            port=port,
            longest_in_hand=terms.longest_in_hand,
            missing=lambda: (*(() if watching.is_set() else (_WATCHES,)), *readiness.missing()),
            metrics=metrics.registry(requests=client.requests, is_leader=fence.is_open, further=(timings, turns)),
        ):
            await wait_for_crd(client, stop)
            handlers = watches.registry(
                cache,
                pools,
                consumers,
                terms.add,
                partial(terms.add, after=_BURST_SECONDS),
                lookers.add,
            )
            fill = partial(prime, client, pools, cache, settings.watch_namespaces)
            parts = [
                watches.watch(handlers, settings.watch_namespaces, started=watching, take_signals=take_signals),
                _elect(elector, terms, filled, stop),
                lookers.run(),
                turns.watch(),
                _fill(fill, filled, partial(readiness.done, _CACHES)),
                scan.run(client, consumers, parents, settings, terms.add, partial(readiness.done, _CONSUMERS)),
            ]
            if settings.webhook.enabled:
                app = application({"/pods": admission.pod}, timings)
                keeper = Keeper(client, settings.webhook, leads=fence.is_open)
                listens = partial(readiness.done, _WEBHOOK)
                parts.append(_webhook(keeper, filled, listens, app, host, webhook_port))
            await _until_one_ends(*parts)
    finally:
        await client.close()
        await lease_client.close()


async def _elect(elector: Elector, terms: Terms, filled: asyncio.Event, stop: asyncio.Event) -> None:
    """Take part in the election once caches are filled: who leads without them would only be slow. Return when told to
    stop, after the Lease was given back."""
    waiting = {asyncio.create_task(filled.wait()), asyncio.create_task(stop.wait())}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await elector.run(terms.run, stop)


async def _fill(fill: Callable[[], Awaitable[object]], filled: asyncio.Event, done: Callable[[], None]) -> None:
    """Fill the caches once, and say so. Then wait until cancelled, since the end of one part is the end of all."""
    while not filled.is_set():
        try:
            await fill()
            filled.set()
            done()
        except ApiError as error:
            _log.warning("the caches wait: %s", error.message)
            await asyncio.sleep(_RETRY_SECONDS)
    await asyncio.Event().wait()


async def _webhook(
    keeper: Keeper, filled: asyncio.Event, listens: Callable[[], None], app: web.Application, host: str, port: int
) -> None:
    """The webhook server until cancelled.

    It begins when caches are filled, since an empty one would look like a missing pool, and when there is a certificate.
    """
    await filled.wait()
    while not keeper.is_serving:
        try:
            await keeper.round()
        except ApiError as error:
            _log.warning("the webhook waits: %s", error.message)
        if not keeper.is_serving:
            await asyncio.sleep(min(_RETRY_SECONDS, keeper.pause))
    async with serve(app, host=host, port=port, context=keeper.context):
        listens()
        await keeper.run()


async def _until_one_ends(*halves: Coroutine[Any, Any, None]) -> None:
    """Run them together. The end of one is the end of all: half an operator is worse than a restarted one."""
    tasks = [asyncio.create_task(half) for half in halves]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _run_until_signal(settings: Settings, *, host: str, port: int, webhook_port: int) -> None:
    """As the first process of a container nobody ends us by default, so the signal is ours from the first moment."""
    stop = asyncio.Event()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    take_signals()
    await run(settings, host=host, port=port, webhook_port=webhook_port, stop=stop, take_signals=take_signals)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kvpool-operator", description="Reconciles KVCachePools.")
    parser.add_argument("--settings", type=Path, help="settings file (YAML), as the chart writes it")
    parser.add_argument("--health-host", default="0.0.0.0", help="address of all servers")  # noqa: S104
    parser.add_argument("--health-port", type=int, default=8080, help="port of /healthz and /readyz")
    parser.add_argument("--webhook-port", type=int, default=9443, help="port of the webhook server")
    options = parser.parse_args(arguments)
    settings = read_settings(options.settings)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    for chatty in ("httpx2", "kopf"):  # a line for each request, and for each event that was put on the queue
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # A full collection over all that was imported would stop the event loop for 50 ms and more (measured).
    gc.freeze()
    try:
        asyncio.run(
            _run_until_signal(
                settings, host=options.health_host, port=options.health_port, webhook_port=options.webhook_port
            )
        )
    except ApiError as error:
        raise SystemExit(f"kvpool-operator: {error.message}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
