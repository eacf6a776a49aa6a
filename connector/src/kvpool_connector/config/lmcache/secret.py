"""A password that came inside a URL or a variable, as the file that the configuration's ``password_file`` names.

The file is in memory and belongs to this process alone: it has no name in any folder, and it goes with the process, also when
that is killed, as vLLM does with its workers. A file in a folder would be left behind then; a field for the password in the
configuration would have to be kept out of every dump of it. Each process of an engine reads the configuration itself, so none
needs another one's file.
"""

from __future__ import annotations

import functools
import os


@functools.cache
def password_file(password: str) -> str:
    """A path that only this process can open. The same password is kept once, however often the configuration is read."""
    handle = os.memfd_create("kvpool-password")  # closed on exec
    os.fchmod(handle, 0o400)
    os.write(handle, password.encode())
    return f"/proc/self/fd/{handle}"
