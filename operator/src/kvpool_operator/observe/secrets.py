"""Values inside Secrets. Nothing here is ever logged."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any


def decoded(secret: Mapping[str, Any], key: str) -> str:
    """One value of a Secret; empty when it isn't there or isn't text."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(key, ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
