"""What a server of the Redis family refuses, and what follows from it.

An error reply begins with a word for its kind (the words are those of Redis' ``src/server.c``,
``createSharedObjects``, and ``src/cluster.c``). A refusal is no fault of the connection: the next answer
is in step, PING may be answered as ever, and nothing but these words tells that a store takes or gives
nothing.

    word          reads go on  writes go on  who mends it                          dial anew
    READONLY      yes          no            the address: it is a replica now      yes
    LOADING       no           no            time: it reads its file               yes, it may be the wrong one of two
    MASTERDOWN    no           no            time: a replica without its primary   yes
    NOAUTH        no           no            the password's file                   yes: it is read again
    OOM           yes          no            whoever runs it: memory or eviction   no
    MISCONF       yes          no            whoever runs it: its disk             no
    NOREPLICAS    yes          no            time: too few replicas                no
    NOPERM        no           no            whoever runs it: rights               no
    MOVED, ASK    no           no            the configuration: a cluster          no
    CLUSTERDOWN   no           no            time, or whoever runs it              no
    others        no           no            nobody knows                          no
"""

from __future__ import annotations

import dataclasses
import threading

QUIET_S = 300.0
"""A refusal that was not seen for so long is told again when it is."""
_LONGEST = 200
_OTHER = "other"


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """A row of the table."""

    word: str
    reads: bool
    """Reads go on."""
    elsewhere: bool
    """To dial anew may help: the address may lead to another server, or the password is another one by now."""
    advice: str

    @property
    def event(self) -> str:
        """Its name in metrics."""
        return event_of(self.word)

    @property
    def consequence(self) -> str:
        """What becomes of blocks."""
        if self.word == _OTHER:
            return "what it refuses is computed"
        return "blocks are read and not written" if self.reads else "blocks are neither read nor written"


_CLUSTER = "kvpool needs all keys on one server: use a store without cluster mode, or one with a single shard"
_ROWS = (
    Refusal("READONLY", True, True, "the address leads to a replica: let it lead to the primary; it is dialled anew"),
    Refusal("LOADING", False, True, "it reads its file and will answer when it has; it is dialled anew"),
    Refusal("MASTERDOWN", False, True, "a replica that lost its primary: let the address lead to the primary"),
    Refusal("NOAUTH", False, True, "set password_file to the file with its password; it is read at each connection"),
    Refusal("WRONGPASS", False, True, "put its password into the file that password_file names"),
    Refusal("OOM", True, False, "it is full: set its maxmemory-policy to allkeys-lru, or give it more memory"),
    Refusal("MISCONF", True, False, "it cannot write its snapshot: mend its disk, or turn its persistence off"),
    Refusal("NOREPLICAS", True, False, "it has too few replicas (min-replicas-to-write)"),
    Refusal("NOPERM", False, False, "allow its user +get +set +exists +touch +unlink +ping +select on keys kvpool:*"),
    Refusal("MOVED", False, False, _CLUSTER),
    Refusal("ASK", False, False, _CLUSTER),
    Refusal("CLUSTERDOWN", False, False, "some of the cluster's slots are served by nobody: mend the cluster"),
)
_TABLE = {row.word: row for row in _ROWS}
_UNKNOWN = Refusal(_OTHER, False, False, "see the server's documentation")


def event_of(word: str) -> str:
    """A refusal's name in metrics. Words that are not in the table share one: a server may send any."""
    return f"store refused {word if word in _TABLE else _OTHER}"


ELSEWHERE = frozenset(row.event for row in _ROWS if row.elsewhere)
"""Events after which dialling anew may help."""


def refusal_of(line: bytes) -> Refusal:
    """What an error reply means.

    Args:
        line: the reply, with its minus sign.
    """
    return _TABLE.get(line[1:].split(b" ", 1)[0].decode(errors="replace"), _UNKNOWN)


def words_of(line: bytes) -> str:
    """The reply for the log. What repeats a command's arguments is cut: one of SET's is the value."""
    text = line[1:].split(b", with args", 1)[0][:_LONGEST]
    return text.decode("latin-1").encode("unicode_escape").decode()


class Spells:
    """Says what is new, so that it is told once and not with every call. From any thread."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def begins(self, where: str, word: str, now: float) -> bool:
        """Return whether a server's refusal was not seen for `QUIET_S`."""
        with self._lock:
            last = self._seen.get((where, word))
            self._seen[where, word] = now
        return last is None or now - last > QUIET_S


SPELLS = Spells()
"""Of this process, whose connections to a server are refused alike: those of the ranks and of the
scheduler's half, for reading and for writing."""
