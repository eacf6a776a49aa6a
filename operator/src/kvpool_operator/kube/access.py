"""How the API server is found: kubeconfig, tokens and TLS are lightkube's."""

from __future__ import annotations

import os
import socket

import httpx2 as httpx
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import KubeConfig

from kvpool_operator.desired.names import FIELD_MANAGER
from kvpool_operator.kube.client import TIMEOUT, Client
from kvpool_operator.kube.errors import ApiError
from kvpool_operator.kube.fence import Fence


def connect(*, agent: str = FIELD_MANAGER, fence: Fence | None = None, undelivered_s: float = 10.0) -> Client:
    """Return a client for the current context of KUBECONFIG where that is set, or else for the Pod's service account.

    Args:
        agent: as what it names itself to the API server, whose audit log has it.
        fence: holds back writes; None: nothing does.
        undelivered_s: after this the kernel gives up bytes that nobody acknowledged. It would go on for
            minutes, also after the connection was closed, and deliver a write when the network is back.

    Raises:
        ApiError: there is neither.
    """
    path = os.environ.get("KUBECONFIG")
    config = (KubeConfig.from_file(path) if path else KubeConfig.from_env()).get()
    if config is None:
        raise ApiError(status=0, message="no cluster: neither a service account nor a current context in KUBECONFIG")
    parameters = ConnectionParams(timeout=TIMEOUT, trust_env=False).httpx_params(config)
    # Source: TCP_USER_TIMEOUT in tcp(7), in milliseconds.
    option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(undelivered_s * 1000))
    transport = httpx.AsyncHTTPTransport(verify=parameters["verify"], trust_env=False, socket_options=[option])
    headers = {"User-Agent": agent}
    return Client(httpx.AsyncClient(**parameters | {"transport": transport, "headers": headers}), fence)
