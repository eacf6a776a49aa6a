"""Mixed into vLLM's workers (``worker_extension_cls``): some of an engine's ranks read another configuration file.

That is what a file that is missing on one of several nodes looks like. vLLM imports this module in
each worker's process, before the connector exists, and nowhere else.
"""

from __future__ import annotations

import multiprocessing
import os

OTHER_FILE = "TEST_OTHER_FILE"
"""Environment variable: the file that some ranks read."""
RANKS = "TEST_OTHER_FILE_RANKS"
"""Environment variable: those ranks, with commas between them."""
NAME = f"{__name__}.OtherFile"


class OtherFile:
    """Has nothing to add to a worker."""


_process = multiprocessing.current_process().name  # VllmWorker-<rank>, see vllm/v1/executor/multiproc_executor.py
if _process.startswith("VllmWorker-") and _process.rpartition("-")[2] in os.environ.get(RANKS, "").split(","):
    os.environ["KVPOOL_CONFIG_FILE"] = os.environ[OTHER_FILE]
