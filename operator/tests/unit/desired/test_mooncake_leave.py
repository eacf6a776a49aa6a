"""The first process of a Mooncake store's container, as bash runs it. On a node: e2e/tests/e2e/test_stores.py."""

from __future__ import annotations

import signal
import subprocess

import pytest

from kvpool_operator.desired.stores.mooncake_leave import ended_by_sigterm
from testkit.patience import PATIENCE_S, promptly


@pytest.mark.parametrize("code", [0, 3])
def test_a_store_that_ends_by_itself(code: int) -> None:
    """Its code is the container's: the kubelet shows it."""
    assert (
        subprocess.run(ended_by_sigterm(["sh", "-c", f"exit {code}"]), check=False, timeout=PATIENCE_S).returncode
        == code
    )


def test_a_store_that_is_killed() -> None:
    """As by the kernel, when memory is short."""
    assert (
        subprocess.run(ended_by_sigterm(["sh", "-c", "kill -9 $$"]), check=False, timeout=PATIENCE_S).returncode == 137
    )


def test_a_store_that_is_told_to_end() -> None:
    """It gets the signal, has the time that it takes, and its words are passed on as they are."""
    words = [
        "bash",
        "-c",
        "trap 'sleep 0.3; echo \"$1\"; exit 5' TERM; echo there; while :; do sleep 0.05; done",
        "-",
        "a  b",
    ]
    with subprocess.Popen(ended_by_sigterm(words), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        with promptly(5):
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "a  b\n"
            assert process.wait(PATIENCE_S) == 5


def test_a_store_that_is_told_to_end_while_it_starts() -> None:
    """The shell passes the signal on from its first moment: without a trap it would end and leave the store behind."""
    for _ in range(100):
        with subprocess.Popen(
            ended_by_sigterm(["sh", "-c", "echo there; exec sleep 60"]), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "there\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
