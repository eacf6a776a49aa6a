"""What a fault at start does to the engine: it stops, or it runs without the cache.

Stopping is the default: a pool that silently does nothing costs as much as a broken one and is
found later. ``on_failure: continue`` is for engines that must come up whatever happens. Imports
nothing of vLLM, because the answer is needed where vLLM's own names are missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from kvpool_connector import config as kvpool_config
from kvpool_connector.log import get_logger
from kvpool_connector.names import ENV_ON_FAILURE

logger = get_logger(__name__)

WAY_OUT = "remove --kv-transfer-config, or set on_failure: continue in kvpool's configuration, to run without the cache"


def continues(extra: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the engine shall run without the cache.

    The configuration decides; where it cannot be read, or says "stop", the environment's or vLLM's
    extra configuration's "continue" counts.

    Args:
        extra: vLLM's ``kv_connector_extra_config``.
    """
    try:
        chosen = kvpool_config.load(extra, environ).on_failure
    except ValueError:
        chosen = "stop"
    asked = {
        ENV_ON_FAILURE: environ.get(ENV_ON_FAILURE),
        "kv_connector_extra_config.on_failure": extra.get("on_failure"),
    }
    for where, word in asked.items():
        if word not in (None, "stop", "continue"):
            logger.warning("%s=%r counts as 'stop': set it to 'stop' or 'continue'", where, word)
    return "continue" in (chosen, *asked.values())
