"""How a Mooncake store leaves its pool: before it is told to end, its blocks are moved to the other stores.

A store that is merely told to end (SIGTERM) tells nobody: for ``client_ttl`` its blocks are looked for in vain,
and then they are lost. The master can drain a segment (``POST /api/v1/drain_jobs``): nothing new is put there, and the store
copies its blocks to others. A drained store is not counted on any more, even before it ends.

Seen with 0.3.13.post1: about 16 blocks a second at most; blocks stay readable meanwhile; a job with nowhere to move to stays
RUNNING, so the script sees that nothing moves for 15 s and lets the store end: a block that somebody has just read has a
lease of up to ten seconds and does not move before that. Only the leader of several masters takes the job.

The store knows no SIGTERM. As the first process of its container it would not even be ended by one, and its Pod would take the
whole of its grace period, so a shell is the first process.
"""

from __future__ import annotations

from collections.abc import Sequence

SECONDS = 60
"""Moving ends after this: a node that is drained should not wait for gigabytes that can be computed again."""
GRACE_SECONDS = SECONDS + 15
_SCRIPT = r"""
ask() {
  exec 3<>"/dev/tcp/$host/$port" || exit 0
  printf '%s %s HTTP/1.0\r\nHost: master\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
    "$1" "$2" "${#3}" "$3" >&3
  timeout 2 cat <&3
}
field() { grep -o "\"$1\":\"[^\"]*\"" | cut -d'"' -f4; }
leader=$(ask GET /leader '' | field leader_address)
[ -z "$leader" ] || host=${leader%:*}
segment=$(ask GET /get_all_segments '' | tr -d '\r' | grep -m1 "^$POD_IP:") || exit 0
order="{\"segments\":[\"$segment\"],\"target_segments\":[],\"max_concurrency\":64}"
job=$(ask POST /api/v1/drain_jobs "$order" | field job_id)
still=0
while [ -n "$job" ] && [ "$still" -lt 30 ]; do
  sleep 0.5
  case $(ask GET "/api/v1/drain_jobs/query?job_id=$job" '') in
    *SUCCEEDED* | *FAILED* | *CANCELED*) exit 0 ;;
    *'"active_units":0,'*) still=$((still + 1)) ;;
    *'"active_units":'*) still=0 ;;
    *) exit 0 ;;
  esac
done
"""
_FIRST_PROCESS = r"""
trap '[ -n "$!" ] && kill "$!" || early=1' TERM  # first of all: a store may be told to end while it starts
"$0" "$@" & store=$!
[ -z "$early" ] || kill "$store"
wait "$store"; code=$?
if kill -0 "$store" 2>/dev/null; then wait "$store"; code=$?; fi  # it was told to end, which ended the first wait
exit "$code"
"""


def ended_by_sigterm(store: Sequence[str]) -> list[str]:
    """The command of a container whose store ends when it is told to. The code is the store's."""
    return ["bash", "-c", _FIRST_PROCESS, *store]


def command(host: str, port: int) -> list[str]:
    """For the store's ``preStop``. It never fails: without a master, or without another store, the store just ends.

    Args:
        host: of the master; of several, any.
        port: of its administration.
    """
    return ["timeout", str(SECONDS), "bash", "-c", f"host={host} port={port}\n{_SCRIPT}"]
