"""Types that several parts of ``spec`` use."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvpool_operator.api.types import ApiModel, ResourceQuantity, Size

StoreSize = Annotated[str, Size("64Mi")]
TierSize = Annotated[str, Size("16Mi")]
HOST_PATTERN = r"^[A-Za-z0-9._:-]+$"


class Resources(ApiModel):
    """Requests and limits of the main container."""

    requests: dict[str, ResourceQuantity] | None = Field(
        None, description="What the scheduler reserves.", max_length=16
    )
    limits: dict[str, ResourceQuantity] | None = Field(None, description="What the container may use.", max_length=16)
