"""LMCache's configuration, read as kvpool's: for engines whose manifests were written for LMCache.

``read`` finds what was given and in which dialect, ``translate`` says what it means here, ``keys`` is the list of all keys,
``urls`` knows the schemes of ``remote_url``. Nothing here needs LMCache, torch or vLLM.

Source: lmcache 0.5.6, ``lmcache/v1/config.py`` (keys, defaults), ``config_base.py`` (how values are parsed) and
``storage_backend/connector/*_adapter.py`` (URLs).
"""

from kvpool_connector.config.lmcache.read import ENV_LMCACHE_FILE, Given, find, present
from kvpool_connector.config.lmcache.translate import Line, Translation, translate

__all__ = ["ENV_LMCACHE_FILE", "Given", "Line", "Translation", "find", "present", "translate"]
