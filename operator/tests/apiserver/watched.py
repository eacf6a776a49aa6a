"""``python watched.py FILE ARGUMENTS...``: run the operator and note the addresses that it connects to.

The operator runs as it is. Python tells this module about each connection and each name that is
looked up, whoever asks for it. Source: https://docs.python.org/3.11/library/audit_events.html.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

CONNECT = "socket.connect"
LOOK_UP = "socket.getaddrinfo"


def main() -> None:
    target = Path(sys.argv.pop(1)).open("a", buffering=1)  # noqa: SIM115  (as long as the process)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == CONNECT:
            address = arguments[1]
            target.write(f"{CONNECT} {address[0]!r} {address[1]}\n" if isinstance(address, tuple) else f"{address!r}\n")
        elif event == LOOK_UP:
            target.write(f"{LOOK_UP} {arguments[0]!r} {arguments[1]}\n")

    sys.addaudithook(note)
    runpy.run_module("kvpool_operator", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
