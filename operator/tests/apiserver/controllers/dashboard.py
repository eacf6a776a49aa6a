"""Stands in for Ray's dashboards, of which there are none: no node runs the Pods.

KubeRay's operator asks a RayCluster's dashboard for its Serve applications and gives it the RayService's configuration
(``controllers/ray/utils/dashboardclient``, v1.6.0).  It comes here because this is its HTTP proxy.  A cluster runs at once
what it is given; what was given is kept, to be looked at.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

APPLICATIONS = "/api/serve/applications/"
HEALTH = "/-/healthz"
"""Of Serve's HTTP proxy on the head."""


class Dashboards:
    """All of them, by the host name of a head's Service. Serves while the context is open."""

    def __init__(self) -> None:
        self.given: dict[str, list[dict[str, Any]]] = defaultdict(list)
        """By host: the configurations, in order."""
        self.asked: Counter[str] = Counter()
        """By host: how often its applications were asked for."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _details(self, host: str) -> dict[str, Any]:
        given = self.given[host]
        names = [application["name"] for application in given[-1]["applications"]] if given else []
        return {"applications": {name: {"name": name, "status": "RUNNING", "deployments": {}} for name in names}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        dashboards = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)  # a proxy is sent the whole url
                if url.path == APPLICATIONS:
                    dashboards.asked[str(url.hostname)] += 1
                    self._answer(200, dashboards._details(str(url.hostname)))
                else:
                    self._answer(200 if url.path == HEALTH else 404, {})

            def do_PUT(self) -> None:
                url = urlsplit(self.path)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if url.path == APPLICATIONS:
                    dashboards.given[str(url.hostname)].append(body)
                self._answer(200 if url.path == APPLICATIONS else 404, {})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nobody reads it."""

        return Handler
