"""How fast one tier delivers, from timed reads, and when to read in order to find out.

A single read says little on a busy host: the first one of a process touches memory for the first
time, and any one may have waited for a core. So the first reads of a tier that seems too slow follow
each other without a pause, and what was only assumed for want of a read does not count any more once
one has ended.
"""

from __future__ import annotations

import dataclasses

PROBE_EVERY_S, PROBE_SHARE, MOST_PROBE_PAUSE_S = 1.0, 0.1, 60.0
"""A tier that is not used for loads is measured by reads of single parts that no request waits for: at most so often, and
at most for so much of the time, since on a slow link a probe itself takes long; but at least once in this pause."""
FIRST_PROBES_S = 0.1
"""So long requests wait for the first measurements of a tier. 1 MiB in 0.1 s are 10 MB/s."""
SURE_AFTER = 3
"""A tier that was measured less often, and seems too slow, is measured again at once."""
_WEIGHT = 0.5


@dataclasses.dataclass(slots=True)
class TierSpeed:
    """What is known about one tier. One thread; ``now`` is always that of the same clock, in seconds."""

    part_bytes: int
    """One rank's part of a chunk."""
    rate: float | None = None
    """Bytes per second and rank; None before anything is known."""
    _reads: int = 0
    _probed_at: float = float("-inf")
    _probing: bool = False
    _waited_until: float | None = None
    _waited_out: bool = False
    _cut_at: float | None = None
    """When the first read was given up of those that nothing arrived in between; None: none was."""

    def read(self, nbytes: int, seconds: float, now: float, *, at_most: bool = False) -> None:
        """Note that a rank read so much in such a time, which ends now.

        Args:
            at_most: the read was given up, so that the tier is at most that fast. This says nothing
                about a tier that is known to be slower: the read had less than its estimated time.
                Nor about one that has delivered, if no read was given up before this one began: a
                pause cuts every read that it meets, on all ranks, and is over for the next one.
        """
        self._probing = False
        rate = nbytes / max(seconds, 1e-6)
        if not at_most:
            self._cut_at = None
        else:
            again = self._cut_at is not None and now - seconds >= self._cut_at
            self._cut_at = now if self._cut_at is None else self._cut_at
            if (self._reads and not again) or (self.rate is not None and rate >= self.rate):
                return
        assumed = self.rate is None or not self._reads
        self.rate = rate if assumed or self.rate is None else self.rate + _WEIGHT * (rate - self.rate)
        self._reads += 1

    def load_s(self, chunks: int) -> float | None:
        """Return how long reading so many chunks takes; None: not measured yet."""
        return chunks * self.part_bytes / self.rate if self.rate else None

    def is_known(self, *, closed: bool) -> bool:
        """Return whether no request needs to wait for a measurement.

        Args:
            closed: the tier seems too slow.
        """
        return self._waited_out or self._reads >= (SURE_AFTER if closed else 1)

    def awaits(self, now: float) -> bool:
        """Return whether a request should wait for the first measurements, though the tier is not
        known yet. The first call begins the time that they are given."""
        if self._waited_until is None:
            self._waited_until = now + FIRST_PROBES_S
        return now < self._waited_until

    def ends_wait(self, now: float) -> bool:
        """Return True once, when the time for the first measurements is over. A tier that was not
        measured by then is taken for one that delivers a part in that time, until a read has ended."""
        if self._waited_until is None or self._waited_out or now < self._waited_until:
            return False
        self._waited_out = True
        if self.rate is None:
            self.rate = self.part_bytes / FIRST_PROBES_S
        return True

    def probe_is_due(self, now: float) -> bool:
        """Return whether it is time to measure."""
        if not self._probing and 0 < self._reads < SURE_AFTER:
            return True
        pause_s = max(PROBE_EVERY_S, min((self.load_s(1) or 0.0) / PROBE_SHARE, MOST_PROBE_PAUSE_S))
        return now - self._probed_at >= pause_s

    def wants_probe(self, now: float) -> bool:
        """Return whether to measure now. The caller does so if it is told to."""
        if not self.probe_is_due(now):
            return False
        self._probing, self._probed_at = True, now
        return True
