"""Something that is worth doing now and then, while there is a reason to: at once, then at growing intervals."""

from __future__ import annotations


class Backoff:
    """One thread. After `quiet_s` without a reason it begins anew."""

    def __init__(self, first_s: float = 1.0, longest_s: float = 30.0, quiet_s: float = 120.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._quiet_s = quiet_s
        self._delay_s = first_s
        self._next_at = float("-inf")
        self._asked_at = float("-inf")

    def due(self, now: float) -> bool:
        """There is a reason. Returns whether to act on it now; each time the next one is due later."""
        if now - self._asked_at > self._quiet_s:
            self._delay_s = self._first_s
            self._next_at = now
        self._asked_at = now
        if now < self._next_at:
            return False
        self._next_at = now + self._delay_s
        self._delay_s = min(self._delay_s * 2, self._longest_s)
        return True
