"""What a Lease says, and who may take it. Pure.

Followers trust no clock but their own: a Lease is over when it was not renewed for its duration
since *they* saw it change. Leaders stop earlier, since they count from before they asked. So clocks
of nodes may differ by anything, and only their speed matters.
Source of the rule: ``tools/leaderelection/leaderelection.go`` of client-go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

API_VERSION = "coordination.k8s.io/v1"
KIND = "Lease"


@dataclass(frozen=True)
class Lease:
    """What a Lease says.

    Attributes:
        holder: the identity of who leads; empty where it was released.
        seconds: how long it holds after it was renewed.
        acquired, renewed: as they were written, and only compared.
        transitions: how often the holder changed.
        version: the object's resourceVersion.
    """

    holder: str
    seconds: float
    acquired: str
    renewed: str
    transitions: int
    version: str


@dataclass(frozen=True)
class Sighting:
    """A Lease, and since when it is known to say this, in seconds on the follower's clock.

    ``lease`` is None where there is none.
    """

    lease: Lease | None
    since: float


def read(body: Mapping[str, Any]) -> Lease:
    """Return what a Lease object says. Whatever is missing in it makes it one that nobody holds."""
    spec = body.get("spec") or {}
    return Lease(
        holder=str(spec.get("holderIdentity") or ""),
        seconds=float(spec.get("leaseDurationSeconds") or 0),
        acquired=str(spec.get("acquireTime") or ""),
        renewed=str(spec.get("renewTime") or ""),
        transitions=int(spec.get("leaseTransitions") or 0),
        version=str(body["metadata"].get("resourceVersion", "")),
    )


def sight(before: Sighting | None, lease: Lease | None, now: float) -> Sighting:
    """Return the sighting of a Lease that was read just now.

    It is as old as the former one where the Lease was not renewed in between. ``now`` has to be taken
    after the answer came: the Lease may have been renewed while it was asked for. Where it was deleted,
    the former one counts on: its holder does not know that yet.
    """
    if before is None or before.lease is None:
        return Sighting(lease, now)
    if lease is None:
        return before
    known = before.lease
    if (known.holder, known.acquired, known.renewed) == (lease.holder, lease.acquired, lease.renewed):
        return Sighting(lease, before.since)
    return Sighting(lease, now)


def free_in(sighting: Sighting, *, identity: str, seconds: float, now: float) -> float:
    """Return the seconds after which this process may take the Lease; 0: now.

    Args:
        seconds: for how long this process would hold a Lease. That of another version may be longer.
    """
    lease = sighting.lease
    if lease is None or lease.holder in ("", identity):
        return 0.0
    return max(0.0, sighting.since + max(lease.seconds, seconds) - now)


def held(before: Lease | None, *, identity: str, seconds: int, time: str) -> dict[str, Any]:
    """Return the spec of a Lease that this process takes or renews now.

    Args:
        before: what it says now; None where there is none.
        time: now, as Kubernetes writes it with microseconds.
    """
    is_renewal = before is not None and before.holder == identity
    transitions = before.transitions if before is not None else 0
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": seconds,
        "acquireTime": before.acquired if before is not None and is_renewal else time,
        "renewTime": time,
        "leaseTransitions": transitions if is_renewal or before is None else transitions + 1,
    }


def released(time: str) -> dict[str, Any]:
    """Return the change of spec by which the holder gives a Lease back."""
    return {"holderIdentity": None, "leaseDurationSeconds": 1, "renewTime": time}
