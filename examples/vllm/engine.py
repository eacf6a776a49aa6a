"""What the examples share: vLLM's own options on the command line, an engine with kvpool, and its end."""

from __future__ import annotations

import argparse
from typing import Any

from vllm import LLM
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

CONNECTOR: dict[str, Any] = {
    "kv_connector": "KVPoolConnector",
    "kv_connector_module_path": "kvpool_connector.vllm",  # not needed where kvpool-connector is installed with pip
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}


def parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """All of vLLM's options, with other defaults.

    Args:
        description: of the example.
        defaults: by option.
    """
    made = EngineArgs.add_cli_args(FlexibleArgumentParser(description=description))  # type: ignore[no-untyped-call]
    made.set_defaults(**{"model": "Qwen/Qwen3-8B"} | defaults)
    return made


def start(options: dict[str, Any], kvpool: dict[str, Any] | None) -> LLM:
    """An engine.

    Args:
        options: of vLLM.
        kvpool: the connector's configuration; None: vLLM alone; empty: it is in the environment.
    """
    if kvpool is not None:
        extra = {"kvpool": kvpool} if kvpool else {}
        options = options | {"kv_transfer_config": KVTransferConfig(**CONNECTOR, kv_connector_extra_config=extra)}
    return LLM(**options)


def end(llm: LLM) -> None:
    """End the engine's processes and threads: the memory tier is given back, the disk tier's files stay. A program that ends
    does the same; a program that starts a second engine needs it."""
    llm.llm_engine.engine_core.shutdown()
