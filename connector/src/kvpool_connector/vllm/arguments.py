"""Switches kvpool on in any engine whose environment has kvpool's configuration.

vLLM is started by `vllm serve`, `python -m`, `LLM(...)`, Ray Serve, KServe's server, shell scripts
and configuration files. All of them come to one method, `EngineArgs.create_engine_config`, with
parsed arguments. The plug-in (:mod:`kvpool_connector.vllm.plugin`) wraps it in processes that have
``KVPOOL_CONFIG_FILE``, and in no others. docs/adr/0016 has the reasons.

Everything here runs in the process that builds the configuration, on its main thread. Source: vLLM
0.32, ``engine/arg_utils.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kvpool_connector import config as kvpool_config
from kvpool_connector.names import ENV_CONFLICT_POLICY
from kvpool_connector.vllm import engine_state, failure, guard
from kvpool_connector.vllm.choice import (
    HASH_ALGORITHM,
    Choice,
    Conflict,
    Given,
    State,
    choose,
    policy,
)

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs

Build = Callable[[], "VllmConfig"]


def watch(arguments_class: type[EngineArgs]) -> None:
    """Have each configuration of an engine built with kvpool in it, where that is possible. A second
    call in a process changes nothing."""
    build: Callable[..., VllmConfig] = arguments_class.create_engine_config
    if hasattr(build, "kvpool"):
        return

    @functools.wraps(build)
    def watched(self: EngineArgs, *args: Any, **kwargs: Any) -> VllmConfig:
        return built(self, functools.partial(build, self, *args, **kwargs))

    watched.kvpool = True  # type: ignore[attr-defined]
    arguments_class.create_engine_config = watched  # type: ignore[method-assign]


def built(arguments: EngineArgs, build: Build, environ: Mapping[str, str] = os.environ) -> VllmConfig:
    """Return an engine's configuration with kvpool in it, or without it and with the reason told.

    Args:
        build: vLLM's own method, which reads and completes the arguments.

    Raises:
        Conflict: the engine has another connector, and the policy is `Fail`.
        ConfigError: kvpool's configuration cannot be used, and ``on_failure`` is "stop".
        Exception: what vLLM raises without kvpool, or with it where ``on_failure`` is "stop".
    """
    try:
        choice = choose(given_by(arguments), policy(environ.get(ENV_CONFLICT_POLICY)))
        if choice.transfer is not None:  # else another connector's configuration counts, or none
            kvpool_config.load({}, environ)
    except Conflict:
        raise
    except Exception as error:  # a configuration that is wrong, or arguments of another vLLM
        if not failure.continues({}, environ):
            raise
        choice = Choice(State.DISABLED, str(error))
    if choice.transfer is None:
        complete = build()
        _tell(choice, complete, environ)
        return complete
    return _with_ours(arguments, build, choice, environ)


def given_by(arguments: EngineArgs) -> Given:
    """Return what vLLM's arguments say about connectors and caching."""
    transfer = arguments.kv_transfer_config
    return Given(
        transfer=None if transfer is None or transfer.kv_connector is None else words(transfer),
        hash_algorithm=arguments.prefix_caching_hash_algo,
        offloading=arguments.kv_offloading_size is not None,
    )


def words(transfer: KVTransferConfig) -> dict[str, Any]:
    """Return a connector's configuration in the words of `--kv-transfer-config`, without defaults."""
    default = type(transfer)()
    named = [field.name for field in dataclasses.fields(transfer) if field.init]
    return {name: getattr(transfer, name) for name in named if getattr(transfer, name) != getattr(default, name)}


def _with_ours(arguments: EngineArgs, build: Build, choice: Choice, environ: Mapping[str, str]) -> VllmConfig:
    """Build with kvpool. If vLLM refuses that and ``on_failure`` is "continue", build without it.

    Building changes the arguments, so the second try begins with what they were. Its error is vLLM's
    own: the engine would not start without kvpool either.
    """
    from vllm.config import KVTransferConfig

    assert choice.transfer is not None
    former = dict(vars(arguments))
    try:
        arguments.kv_transfer_config = KVTransferConfig(**choice.transfer)
        arguments.prefix_caching_hash_algo = HASH_ALGORITHM
        complete = build()
    except Exception as error:
        if not failure.continues({}, environ):
            raise
        vars(arguments).clear()
        vars(arguments).update(former)
        complete = build()
        engine_state.tell(State.DISABLED, f"vLLM refuses this engine with kvpool: {_message(error)}")
        return complete
    _tell(choice, complete, environ)
    return complete


def _tell(choice: Choice, complete: VllmConfig, environ: Mapping[str, str]) -> None:
    """Tell what became of kvpool. It was taken out again where vLLM runs no connector; see
    :mod:`kvpool_connector.vllm.guard`."""
    if choice.state is State.ACTIVE and complete.kv_transfer_config is None:
        engine_state.tell(State.DISABLED, "; ".join(guard.refusals(complete, environ)))
    else:
        engine_state.tell(choice.state, choice.reason)


def _message(error: Exception) -> str:
    """Return what an error says. The text of pydantic's begins with a count and holds all arguments."""
    if isinstance(error, ValidationError):
        return "; ".join(str(one["msg"]) for one in error.errors(include_context=False))
    return str(error)
