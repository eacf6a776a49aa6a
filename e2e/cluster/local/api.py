"""Reading from the API server as administrator, without the cost of a kubectl process per look."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any


class Api:
    """Short reads; every failure to reach the server is an answer (None), since the server may be starting."""

    def __init__(self, host: str, port: int, pki: Path) -> None:
        self._host = host
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))

    def get(self, path: str) -> tuple[int, bytes] | None:
        """Status and body."""
        return self._request("GET", path, None)

    def create(self, path: str, manifest: dict[str, Any]) -> bool:
        """Create an object; True when it is there, by us or by another."""
        answer = self._request("POST", path, json.dumps(manifest).encode())
        return answer is not None and answer[0] in (200, 201, 409)

    def ready(self) -> bool:
        """True when the API server says that it is ready."""
        answer = self.get("/readyz")
        return answer is not None and answer[0] == 200

    def exists(self, path: str) -> bool:
        """True when the object is there."""
        answer = self.get(path)
        return answer is not None and answer[0] == 200

    def condition(self, path: str, kind: str) -> bool:
        """True when the object's condition of this type is True."""
        answer = self.get(path)
        if answer is None or answer[0] != 200:
            return False
        conditions = json.loads(answer[1]).get("status", {}).get("conditions", [])
        return any(each["type"] == kind and each["status"] == "True" for each in conditions)

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes] | None:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=10.0, context=self._tls)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
