"""What all parts of the configuration file have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from kvpool_connector.config.quantity import parse_quantity

WritePolicy = Literal["write_through", "write_back", "selective"]
"""At once; when memory needs the room; or when a block is seen for the second time."""
ByteSize = Annotated[int, BeforeValidator(parse_quantity)]
"""Bytes; read from a number or a Kubernetes quantity."""


class Section(BaseModel):
    """One part of the file. Unknown keys are errors: a misspelt one would silently do nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
