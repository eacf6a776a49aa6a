"""What can come of a request to the API server, as errors that a caller can tell apart.

``ApiError`` is the root of all of them, and the only thing that comes out of the client::

    ApiError
    ├── NotFound    no such object
    ├── Conflict    it exists already, or changed since it was read
    ├── Refused     invalid or forbidden: asking again is of no use
    └── NotLeading  a write that was not sent, since another replica may lead
"""

from __future__ import annotations


class ApiError(Exception):
    """The API server did not do what was asked. Trying again later may help."""

    def __init__(self, *, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class NotFound(ApiError):
    """No such object."""


class Conflict(ApiError):
    """The object exists already, or is no longer what the caller saw."""


class Refused(ApiError):
    """The API server understood and said no: invalid, or forbidden. The same request will be refused again."""


class NotLeading(ApiError):
    """This process holds no Lease, or could not renew it in time. The write was not sent."""

    def __init__(self) -> None:
        super().__init__(status=0, message="nothing is written by a replica that does not lead")
