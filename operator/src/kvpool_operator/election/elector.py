"""The elector: takes the Lease, renews it, has the leader's work done meanwhile, and gives it back.

The order in which things end is what keeps two replicas from writing at the same time::

    last renewal was asked for      + renew_seconds       + lease_seconds
    ──────┼─────────────────────────────┼─────────────────────┼──────────────►
          the leader writes             its fence closes      a follower may take over
                                        its work is cancelled

``fence`` moves before the work does: a write that is due when it is closed is not sent. What was sent
before is given up when the work is cancelled, and has the rest of the Lease's time to end.

The Lease is asked for through a client of its own, which no fence holds back and whose connection no
other request keeps busy.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kvpool_operator.api.settings import Election
from kvpool_operator.election import lease as leases
from kvpool_operator.election.lease import Lease, Sighting
from kvpool_operator.kube import LEASE, ApiError, Client, Conflict, NotFound
from kvpool_operator.kube.fence import Fence, boot_clock

_log = logging.getLogger(__name__)
_RELEASE_SECONDS = 2.0
"""For the request that gives the Lease back. Without an answer it ends by itself."""
_END_SECONDS = 2.0
"""For the leader's work to end when it is cancelled."""
_RETRY_SECONDS = 0.5
"""Between two tries of a renewal that failed."""
Work = Callable[[], Awaitable[None]]


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Elector:
    """Runs one replica's part in the election. One event loop."""

    def __init__(
        self,
        client: Client,
        fence: Fence,
        settings: Election,
        *,
        namespace: str,
        identity: str,
        clock: Callable[[], float] = boot_clock,
        now: Callable[[], datetime.datetime] = _utc_now,
    ) -> None:
        """Take what it works with.

        Args:
            client: for the Lease alone; without a fence.
            fence: of all other writes, on the same clock.
            namespace: of the Lease.
            identity: what no other process has ever had.
            now: the time of day that is written into the Lease, for people.
        """
        self._client = client
        self._fence = fence
        self._settings = settings
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._now = now
        self._sighting: Sighting | None = None
        self._held: Lease | None = None
        self._said = ""

    async def run(self, work: Work, stop: asyncio.Event) -> None:
        """Do the leader's work whenever this replica leads, until told to stop.

        Returns when the Lease was given back. ``work`` runs until it is cancelled. If it ends by
        itself, so does this; what it raised is raised.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                pause = await self._look()
                if self._fence.is_open():
                    await self._lead(work, stopping)
                else:
                    await asyncio.wait({stopping}, timeout=pause)
        finally:
            stopping.cancel()

    async def _look(self) -> float:
        """Look at the Lease once, and take it if it is free. Return the seconds until the next look."""
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                found = await self._find()
                self._sighting = leases.sight(self._sighting, found, self._clock())
                wait = leases.free_in(
                    self._sighting,
                    identity=self._identity,
                    seconds=self._settings.lease_seconds,
                    now=self._clock(),
                )
                if wait > 0:
                    self._say(f"following {found.holder if found else 'the holder of a deleted Lease'}")
                    return min(wait, self._settings.look_seconds)
                await self._hold(found)
        except Conflict:
            return 0.0  # another replica was faster, and the next look shows which
        except (ApiError, TimeoutError) as error:
            self._say(f"the Lease can't be had: {_words(error)}")
        return self._settings.look_seconds

    async def _lead(self, work: Work, stopping: asyncio.Task[Any]) -> None:
        """Have the work done and renew the Lease, until it is lost, the work ends, or all shall end."""
        self._say("leading")
        tasks = {asyncio.create_task(_do(work)), asyncio.create_task(self._renew())}
        try:
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            was_held = self._fence.is_open()
            self._fence.close()
            for task in tasks:
                task.cancel()
            _, unended = await asyncio.wait(tasks, timeout=_END_SECONDS)
            if was_held and not unended:
                await self._release()
            self._sighting = None
            self._say("no longer leading")
        for task in done & tasks:
            task.result()

    async def _renew(self) -> None:
        """Renew the Lease again and again. Return when it is lost."""
        pause = self._settings.pause_seconds
        while self._fence.is_open():
            await asyncio.sleep(min(pause, self._fence.remaining()))
            # A process that was stopped meanwhile does not ask: another may lead by now.
            left = self._fence.remaining()
            if left == 0:
                break
            pause = _RETRY_SECONDS
            try:
                async with asyncio.timeout(min(left, self._settings.request_seconds)):
                    await self._hold(self._held)
                pause = self._settings.pause_seconds
            except NotFound:
                _log.warning("election: the Lease was deleted, and is made again")
                self._held = None
                pause = 0.0
            except Conflict:
                if not await self._is_still_ours():
                    # What is read now is another's, and not to be given back.
                    self._fence.close()
                    _log.warning("election: another replica took the Lease")
                    return
                pause = 0.0
            except (ApiError, TimeoutError) as error:
                _log.warning("election: the Lease was not renewed: %s", _words(error))
        _log.warning("election: the Lease was not renewed within %g s", self._settings.renew_seconds)

    async def _is_still_ours(self) -> bool:
        """Read the Lease anew. A renewal without an answer may have come about."""
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                self._held = await self._find()
        except (ApiError, TimeoutError):
            return True  # not known, so the next renewal hears of it
        return self._held is not None and self._held.holder == self._identity

    async def _find(self) -> Lease | None:
        try:
            return leases.read(await self._client.get(LEASE, self._namespace, self._settings.lease))
        except NotFound:
            return None

    async def _hold(self, before: Lease | None) -> None:
        """Take or renew the Lease as it was seen, and open the fence.

        Raises:
            Conflict: it changed since.
            ApiError: the API server did not do it.
        """
        began = self._clock()
        spec = leases.held(before, identity=self._identity, seconds=self._settings.lease_seconds, time=self._time())
        self._held = leases.read(await self._write(before, spec))
        # Counted from before the request: followers count from after they saw what came of it.
        self._fence.extend(began + self._settings.renew_seconds)

    async def _release(self) -> None:
        """Give the Lease back, so that nobody has to wait for its end."""
        if self._held is None:
            return
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._write(self._held, leases.released(self._time()))
        except (ApiError, TimeoutError) as error:
            _log.warning("election: the Lease was not given back: %s", _words(error))

    async def _write(self, before: Lease | None, spec: Mapping[str, Any]) -> dict[str, Any]:
        name = self._settings.lease
        if before is None:
            metadata = {"namespace": self._namespace, "name": name}
            manifest = {"apiVersion": leases.API_VERSION, "kind": leases.KIND, "metadata": metadata}
            return await self._client.create(LEASE, {**manifest, "spec": spec})
        patch = {"metadata": {"resourceVersion": before.version}, "spec": spec}
        return await self._client.merge(LEASE, self._namespace, name, patch)

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _say(self, words: str) -> None:
        """Log what this replica does, once for each change."""
        if words != self._said:
            self._said = words
            _log.info("election: %s: %s", self._identity, words)


async def _do(work: Work) -> None:
    await work()


def _words(error: Exception) -> str:
    return error.message if isinstance(error, ApiError) else "no answer in time"
