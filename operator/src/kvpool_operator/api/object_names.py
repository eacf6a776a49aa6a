"""What an object of the API server can be called. Every name that comes from a user is checked against
this where it is read, and again where the path of a request is made of it.

Source: the API server's own rules (``k8s.io/apimachinery/pkg/util/validation``, IsDNS1123Subdomain and
IsConfigMapKey).
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

OBJECT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
MOST_NAME = 253
ObjectName = Annotated[str, Field(min_length=1, max_length=MOST_NAME, pattern=OBJECT_NAME)]
"""The name of an object, such as a Secret. It has no slash, no ``..`` and no other character that means
something else in a URL."""
OptionalName = Annotated[str, Field(max_length=MOST_NAME, pattern=f"^$|{OBJECT_NAME}")]
"""The name of an object, or nothing, where Kubernetes gives nothing a meaning of its own."""
VariableName = Annotated[str, Field(min_length=1, max_length=MOST_NAME, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
"""The name of an environment variable (IsEnvVarName)."""
DataKey = Annotated[str, Field(min_length=1, max_length=MOST_NAME, pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$")]
"""A key in a Secret, which becomes the name of a file in a Pod."""
_OBJECT_NAME = re.compile(OBJECT_NAME.removesuffix("$").removeprefix("^"))


def is_object_name(text: str) -> bool:
    """Return whether an object or a namespace can have this name."""
    return len(text) <= MOST_NAME and _OBJECT_NAME.fullmatch(text) is not None
