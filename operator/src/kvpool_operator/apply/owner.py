"""The pool that owns what one reconciliation writes."""

from __future__ import annotations

from kvpool_operator.kube import POOL, Client, NotFound


class PoolGone(Exception):
    """The pool was deleted while it was reconciled. The watch tells of it, too."""


class Owner:
    """Asks whether a pool is still there before its children are made a second time.

    A pool may be deleted at any moment of its reconciliation. Kubernetes then deletes its children,
    and watches may show that before they show that the pool is gone. To whoever looks only at the
    children they seem to be missing.
    """

    def __init__(self, client: Client, namespace: str, name: str, uid: str, *, is_new: bool) -> None:
        """Args:
        is_new: the pool has no status, so its children are missing because nobody made them.
        """
        self._client = client
        self._namespace = namespace
        self._name = name
        self._confirmed = is_new
        self.uid = uid

    async def confirm(self) -> None:
        """Ask, once in a reconciliation.

        Raises:
            PoolGone: it is deleted, or another pool has its name.
            ApiError: the API server did not tell.
        """
        if self._confirmed:
            return
        try:
            body = await self._client.get(POOL, self._namespace, self._name)
        except NotFound:
            raise PoolGone from None
        metadata = body["metadata"]
        if metadata["uid"] != self.uid or "deletionTimestamp" in metadata:
            raise PoolGone
        self._confirmed = True
