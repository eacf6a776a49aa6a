"""Types that several parts of ``spec`` use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvpool_operator.api.types import ApiModel, ResourceQuantity, Size

StoreSize = Annotated[str, Size("64Mi")]
TierSize = Annotated[str, Size("16Mi")]
HOST_PATTERN = r"^[A-Za-z0-9._:-]+$"
PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
ADDRESS = rf"[A-Za-z0-9._-]+:{PORT}"
"""A part of patterns: a host and a TCP port from 1 to 65535."""


class Resources(ApiModel):
    """Requests and limits of the main container."""

    requests: dict[str, ResourceQuantity] | None = Field(
        None, description="What the scheduler reserves.", max_length=16
    )
    limits: dict[str, ResourceQuantity] | None = Field(None, description="What the container may use.", max_length=16)
