"""Security contexts of generated Pods: Pod Security "restricted", without exceptions."""

from __future__ import annotations

from kvpool_operator.desired.pool import Manifest

USER = 10001
"""Above 10000, so that it is nobody's on the node either."""


def pod_context() -> Manifest:
    """``fsGroup`` makes mounted Secrets readable for the user although their files belong to root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_context() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_basics() -> Manifest:
    """What every Pod spec starts from.

    No API token; and no Service links, since a Service called ``vllm`` would put VLLM_PORT=tcp://... into the
    environment, which vLLM refuses.
    """
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_context(),
    }
