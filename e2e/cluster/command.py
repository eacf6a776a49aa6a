"""Running other programs: their output is kept for the error message instead of being printed.

`run` raises `ClusterError` with the program's last lines when it fails; `succeeds` is for questions.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from e2e.cluster.progress import ClusterError

Argv = Sequence[str | Path]


def run(
    argv: Argv,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end and return what it printed on standard output."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{' '.join(words[:6])}` did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        raise ClusterError(failure(words, done.returncode, done.stderr or done.stdout))
    return done.stdout


def failure(words: Sequence[str], code: int, output: str) -> str:
    """One message for a failed program: what was called, its exit status and its last lines."""
    called = " ".join(words[:6]) + (" ..." if len(words) > 6 else "")
    tail = "\n".join(output.strip().splitlines()[-8:])
    return f"`{called}` failed with exit status {code}:\n{tail}"


def succeeds(argv: Argv, *, env: Mapping[str, str] | None = None, timeout: float = 30.0) -> bool:
    """True when the program exists, ends in time and exits with 0; its output is dropped."""
    try:
        run(argv, env=env, timeout=timeout)
    except ClusterError:
        return False
    return True


def piped(argv: Argv, feed: IO[bytes], *, env: Mapping[str, str] | None = None) -> None:
    """Run a program that reads the open file `feed` as its standard input."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, stdin=feed, env={**os.environ, **(env or {})}, capture_output=True, check=False)
    if done.returncode != 0:
        raise ClusterError(failure(words, done.returncode, (done.stderr or done.stdout).decode(errors="replace")))
