"""The stage on Kubernetes: the quickstart's pool, its two engine Pods and its Redis Pod."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from e2e.demo.install import NAMESPACE, install
from e2e.demo.stage import ENGINES, EngineName
from testkit.engine import MODEL_NAME
from testkit.host import Dtype, chosen_dtype
from testkit.http_client import healthy, reset_tiers
from testkit.servers import wait_until

POOL = "quickstart"
START_S = 600.0
_ENGINES = f"kvpool.dev/pool={POOL},app.kubernetes.io/component=engine"
_STORE = f"kvpool.dev/pool={POOL},app.kubernetes.io/component=store"


class Cluster:
    """Left running on exit, for a look around; ``make demo-down`` ends it."""

    model = MODEL_NAME

    def __init__(self, say: Callable[[str], None], dtype: Dtype | None = None) -> None:
        """Args:
        dtype: number type of both engines; None: the one that this host is run in.
        """
        self._say = say
        self.dtype = dtype or chosen_dtype()
        self._pods: dict[EngineName, str] = {}
        self._addresses: dict[EngineName, str] = {}

    def __enter__(self) -> Self:
        self.kubectl = install(self._say, self.dtype)
        self._children_made()
        self._ready()
        names = sorted(pod["metadata"]["name"] for pod in self._running())
        self._pods = {"A": names[0], "B": names[1]}
        self._locate()
        if self.parts():
            self._forget()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing: see the class."""

    def url(self, engine: EngineName) -> str:
        """The Pod itself, not the Service: the steps say which engine answers."""
        return self._addresses[engine]

    def restart_a(self) -> None:
        """The Deployment makes a new Pod; that one is A from then on."""
        self.kubectl("delete", "pod", self._pods["A"], "-n", NAMESPACE, "--grace-period=1", "--wait=true")
        self._ready()
        (self._pods["A"],) = {pod["metadata"]["name"] for pod in self._running()} - {self._pods["B"]}
        self._locate()

    def parts(self) -> int:
        """Return the number of keys in Redis without the engines' identity documents."""
        documents = self._redis("--scan", "--pattern", "kvpool:identity:*").split()
        return int(self._redis("dbsize")) - len(documents)

    def kill_store(self) -> None:
        """The Pod ends at once. The pool is paused, or the operator and the Deployment would have a new one within seconds."""
        self._patch_pool(paused=True)
        self.kubectl("scale", "-n", NAMESPACE, f"deployment/{POOL}-store", "--replicas=0")
        self.kubectl("delete", "pod", "-n", NAMESPACE, "-l", _STORE, "--grace-period=0", "--force")

    def return_store(self) -> None:
        """The operator takes over again and finds its Deployment scaled down by hand."""
        self._patch_pool(paused=False)
        wait_until("Redis is back", self._store_answers, timeout_s=60, poll_s=0.5)

    def look_further(self) -> str:
        """The pool as kubectl shows it, and commands."""
        view = self.kubectl("get", "kvcachepools", "-n", NAMESPACE)
        return (
            f"kubectl get kvcachepools -n {NAMESPACE}\n{view}\n"
            'look further:  eval "$(python3 -m e2e.cluster env --name demo)"\n'
            f"  kubectl describe kvcachepool {POOL} -n {NAMESPACE}      conditions and what to do about them\n"
            f"  kubectl get all -n {NAMESPACE}                        what the operator made of 20 lines\n"
            f"  kubectl logs -n {NAMESPACE} {self._pods['B']} | grep kvpool\n"
            "  make demo-down                                         removes all of it"
        )

    def _forget(self) -> None:
        """An earlier demo's blocks would make the cold step warm."""
        self._say("an earlier demo left blocks: store and engines forget them")
        self.kubectl("delete", "pod", "-n", NAMESPACE, "-l", _STORE, "--grace-period=1", "--wait=true")
        wait_until("Redis is back", self._store_answers, timeout_s=60, poll_s=0.5)
        for engine in ENGINES:
            reset_tiers(self.url(engine))

    # ---- waiting -----------------------------------------------------------------------------------------

    def _children_made(self) -> None:
        began = time.monotonic()
        wait_until(
            "the operator makes the engines' Deployment",
            lambda: self.kubectl(
                "get", "deployment", "-n", NAMESPACE, "-l", _ENGINES, "-o", "name", check=False
            ).strip(),
        )
        self._say(f"all children are there {time.monotonic() - began:.1f} s after apply")

    def _ready(self) -> None:
        """The pool says so itself."""
        began = time.monotonic()
        shown = ""

        def ready() -> bool:
            nonlocal shown
            pool = self.kubectl.get("kvcachepool", POOL, "-n", NAMESPACE)
            conditions = {c["type"]: c for c in pool.get("status", {}).get("conditions", [])}
            state = conditions.get("Ready", {"status": "Unknown", "message": "not looked at yet"})
            line = f"Ready={state['status']}: {state['message']}"
            if line != shown:
                shown = line
                self._say(line[:150])
            return state["status"] == "True" and self._all_replicas(pool) and len(self._running()) == 2

        wait_until("the pool is Ready", ready, START_S, poll_s=1)
        self._say(f"both engines are ready after {time.monotonic() - began:.0f} s")

    @staticmethod
    def _all_replicas(pool: Any) -> bool:
        return all(engine["ready"] == engine["desired"] for engine in pool["status"].get("engines", []))

    def _running(self) -> list[Any]:
        """Return ready engine Pods that are not on their way out, neither to be deleted nor of another number type: an earlier
        run on the same cluster may have been in another one."""
        return [
            pod
            for pod in self.kubectl.get("pods", "-n", NAMESPACE, "-l", _ENGINES)["items"]
            if "deletionTimestamp" not in pod["metadata"]
            and self.dtype in pod["spec"]["containers"][0]["args"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        ]

    def _locate(self) -> None:
        for engine, name in self._pods.items():
            pod = self.kubectl.get("pod", name, "-n", NAMESPACE)
            self._addresses[engine] = f"http://{pod['status']['podIP']}:8000"
            if not healthy(self._addresses[engine]):
                raise RuntimeError(
                    f"Pod {name} is ready, but {self._addresses[engine]} does not answer from here: this demo talks to Pods "
                    "directly, which needs a cluster on this machine (KVPOOL_CLUSTER=local)"
                )

    # ---- the store ---------------------------------------------------------------------------------------

    def _redis(self, *words: str) -> str:
        call = ["exec", "-n", NAMESPACE, f"deployment/{POOL}-store", "--"]
        return self.kubectl(*call, "redis-cli", "--user", "kvpool", *words).strip()

    def _store_answers(self) -> bool:
        try:
            return self._redis("ping") == "PONG"
        except RuntimeError:
            return False

    def _patch_pool(self, *, paused: bool) -> None:
        patch = f'{{"spec": {{"paused": {str(paused).lower()}}}}}'
        self.kubectl("patch", "kvcachepool", POOL, "-n", NAMESPACE, "--type=merge", "-p", patch)
