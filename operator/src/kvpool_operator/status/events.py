"""What is worth an Event on the pool: text and nothing else. Everything that an Event says is in the status, too.

An Event is for a change of meaning: ``of`` compares the status that was written with the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvpool_operator.status import consumers, rollout
from kvpool_operator.status.observed import Consumer, Observed

_NAMED = 3
_NOTE = 1024
"""Characters of a note that the API server takes."""


@dataclass(frozen=True)
class Event:
    """Attributes:
    reason: one word for programs.
    action: what was being done.
    note: for people; no credentials.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    note: str


def of(seen: Observed, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Event, ...]:
    """Return what began to wait for a restart, and that nothing waits any more. Fewer than before is no news."""
    return (*_consumers(seen, before, after), *_rollout(seen, before, after))


def deleted_in_use(consumers: Iterable[Consumer]) -> Event | None:
    """Return what to say of a pool that is deleted although Pods of users have it; None: none has."""
    users = sorted({one.workload or f"Pod {one.pod}" for one in consumers if one.mark})
    if not users:
        return None
    rest = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
    note = f"the pool is deleted while it is used; these go on without it: {', '.join(users[:_NAMED])}{rest}"
    return Event("Warning", "DeletedInUse", "Delete", note[:_NOTE])


def _rollout(seen: Observed, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Event, ...]:
    """Tell of workloads of the pool itself."""
    was, now = ({one["workload"] for one in _waiting(status)} for status in (before, after))
    if now - was:
        return (Event("Normal", "RolloutPending", "Rollout", rollout.told(seen.waiting or ())[:_NOTE]),)
    if was and not now and seen.waiting is not None:
        return (Event("Normal", "NoRolloutPending", "Rollout", "no workload waits for other Pods any more"),)
    return ()


def _waiting(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list((status.get("rollout") or {}).get("waiting") or ())


def _consumers(seen: Observed, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Event, ...]:
    """Tell of workloads of users."""
    was, now = (int(status.get("workloadsWaiting") or 0) for status in (before, after))
    if now > was:
        return (Event("Normal", "RestartNeeded", "Inject", _restart(consumers.waiting(seen))),)
    if was and not now and seen.pool is not None:
        return (Event("Normal", "NoRestartNeeded", "Inject", "no workload waits for a restart any more"),)
    return ()


def _restart(workloads: tuple[str, ...]) -> str:
    alone = len(workloads) == 1
    count = "1 workload that names this pool runs" if alone else f"{len(workloads)} workloads that name this pool run"
    rest = f" and {len(workloads) - _NAMED} more" if len(workloads) > _NAMED else ""
    named = ", ".join(workloads[:_NAMED])
    return f"{count} without the cache and would get it: restart {named}{rest}"[:_NOTE]
