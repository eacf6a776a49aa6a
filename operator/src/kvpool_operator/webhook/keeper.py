"""Keeps the certificates: in a Secret, announced in the MutatingWebhookConfiguration, and in the server's TLS context.

Each round first announces what the Secret has, then moves on by one step, then serves. So nothing is served that was not
announced, and a restart in between loses nothing. A context that is given a new certificate uses it for new connections.

One replica of several leads: it alone writes. The others serve what the Secret has. They look at it more often than a new CA is
announced before a certificate of it is served, so they need not know whether it was.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import logging
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from kvpool_operator.api.settings import Webhook
from kvpool_operator.kube import SECRET, WEBHOOKS, ApiError, Client, Conflict, NotFound
from kvpool_operator.webhook import certificates
from kvpool_operator.webhook.certificates import Bundle, Terms

_log = logging.getLogger(__name__)
_FIELDS = ("ca.crt", "ca.key", "tls.crt", "tls.key")


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Keeper:
    """One for the operator's life."""

    def __init__(
        self,
        client: Client,
        settings: Webhook,
        *,
        leads: Callable[[], bool],
        now: Callable[[], datetime.datetime] = _utc_now,
    ) -> None:
        """Take ``leads``, which says whether this replica leads now, and the time of day."""
        self._client = client
        self._settings = settings
        self._leads = leads
        self._now = now
        self._served = b""
        self.pause = settings.check_seconds
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2

    @property
    def is_serving(self) -> bool:
        """Whether the context has a certificate, without which no connection comes about."""
        return bool(self._served)

    async def run(self) -> None:
        """Look after them until cancelled. What fails is tried again at the next round."""
        while True:
            await asyncio.sleep(self.pause)
            try:
                await self.round()
            except ApiError as error:
                _log.warning("webhook certificates: %s", error.message)

    async def round(self) -> None:
        """One look, and at most one step.

        Raises:
            ApiError: the API server can't be reached or refused, or this replica does not lead any more.
        """
        secret = await self._find()
        bundle = _read(secret) if secret is not None else None
        if not self._leads():
            if bundle is not None:
                self._serve(bundle)
            return
        if bundle is not None:
            await self._announce(bundle)
        wanted = certificates.advance(bundle, self._terms(), self._now())
        if wanted is not bundle:
            written = await self._write(secret, wanted)
            if written is None:
                return  # somebody else was first; the next round reads it
            await self._announce(wanted)
        self._serve(wanted)

    def _terms(self) -> Terms:
        seconds = datetime.timedelta(seconds=1)
        return Terms(
            names=self._settings.names,
            ca=self._settings.ca_seconds * seconds,
            certificate=self._settings.certificate_seconds * seconds,
            overlap=self._settings.overlap_seconds * seconds,
        )

    async def _find(self) -> dict[str, Any] | None:
        try:
            return await self._client.get(SECRET, self._settings.namespace, self._settings.secret)
        except NotFound:
            return None

    async def _write(self, secret: Mapping[str, Any] | None, bundle: Bundle) -> dict[str, Any] | None:
        """Create or change the Secret as it was read; None: it changed since."""
        values = (bundle.announced, bundle.authority_key, bundle.certificate, bundle.key)
        data = {key: base64.b64encode(value).decode() for key, value in zip(_FIELDS, values, strict=True)}
        head = {"name": self._settings.secret, "namespace": self._settings.namespace}
        try:
            if secret is None:
                _log.info("webhook: making a CA and a certificate in Secret %(namespace)s/%(name)s", head)
                manifest = {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": head,
                    "type": "kubernetes.io/tls",
                    "data": data,
                }
                return await self._client.create(SECRET, manifest)
            version = secret["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": data}
            return await self._client.merge(SECRET, head["namespace"], head["name"], patch)
        except (Conflict, NotFound):
            return None

    async def _announce(self, bundle: Bundle) -> None:
        """Write the CAs into each webhook of the configuration, if they are not there."""
        name = self._settings.configuration
        try:
            configuration = await self._client.get(WEBHOOKS, "", name)
        except NotFound:
            _log.warning("webhook: there is no MutatingWebhookConfiguration %s: install it with the chart", name)
            return
        wanted = base64.b64encode(bundle.announced).decode()
        operations: list[dict[str, Any]] = []
        for place, webhook in enumerate(configuration.get("webhooks") or ()):
            if webhook["clientConfig"].get("caBundle") != wanted:
                # The test guards against a configuration whose entries moved since it was read.
                operations.append({"op": "test", "path": f"/webhooks/{place}/name", "value": webhook["name"]})
                path = f"/webhooks/{place}/clientConfig/caBundle"
                operations.append({"op": "add", "path": path, "value": wanted})
        if operations:
            await self._client.patch(WEBHOOKS, "", name, operations)

    def _serve(self, bundle: Bundle) -> None:
        if bundle.certificate == self._served:
            return
        # OpenSSL reads certificates from files only. This one is ours alone, and gone when it was read.
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "pair")  # noqa: PTH118
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:  # noqa: PTH123
                file.write(bundle.certificate + bundle.key)
            self.context.load_cert_chain(path)
        self._served = bundle.certificate
        _log.info("webhook: serving certificate %s", certificates.serial_number(bundle.certificate))


def _read(secret: Mapping[str, Any]) -> Bundle | None:
    data = secret.get("data") or {}
    try:
        return certificates.read(*(base64.b64decode(data[key], validate=True) for key in _FIELDS))
    except (KeyError, ValueError, TypeError, binascii.Error, IndexError) as error:
        _log.warning(
            "webhook: the Secret with the certificates can't be used (%s), so the leader makes another",
            type(error).__name__,
        )
        return None
