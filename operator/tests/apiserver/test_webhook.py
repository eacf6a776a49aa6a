"""The webhook itself: away and back, certificates that are rotated or spoilt, and how fast it answers.

The certificates are the operator's and so all tests': who changes how long they live puts those of before back.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from cryptography import x509

from testkit.patience import PATIENCE_S

from .conftest import SYSTEM, Operator
from .injection import annotations_of, await_trust, calls, create, is_injected, pod
from .kubectl import Kubectl, eventually

SECRET = "kvpool-operator-webhook"


def test_without_the_webhook_pods_start_and_are_found_afterwards(pool: Kubectl, operator: Operator) -> None:
    operator.stop()
    create(pool, pod("missed"))
    assert annotations_of(pool, "missed").keys() == {"kvpool.dev/pool"}
    operator.start()
    found = pool.await_condition("demo", "InjectionReady", reason="PodsMissed")
    assert f"{pool.namespace}/missed: nothing was injected" in found["message"]
    assert pool.must_get("kvcachepool", "demo")["status"]["consumers"][0]["state"] == "Missed"


@pytest.fixture
def quickly_rotated(environment: dict[str, str], operator: Operator) -> Iterator[Operator]:
    """The same operator with certificates that live for seconds, and with those of before afterwards.

    Each step of the rotation has some seconds of slack, in which a busy operator and the API server's watch can be late.
    """
    system = Kubectl(environment, SYSTEM)
    before, certificates = operator.settings.read_text(), system.must_get("secret", SECRET)["data"]
    settings = yaml.safe_load(before)
    settings["webhook"] |= {"caSeconds": 18, "certificateSeconds": 12, "overlapSeconds": 4}
    operator.stop()
    operator.settings.write_text(yaml.safe_dump(settings))
    operator.start()
    yield operator
    operator.stop()
    operator.settings.write_text(before)
    system("patch", "secret", SECRET, "--type=merge", "-p", json.dumps({"data": certificates}))
    operator.start()
    await_trust(system)


def served(operator: Operator) -> tuple[int, str]:
    """Serial number of the certificate that the server shows, and the name of the CA that made it."""
    text = ssl.get_server_certificate(("127.0.0.1", operator.webhook_port), timeout=PATIENCE_S)
    found = x509.load_pem_x509_certificate(text.encode())
    return found.serial_number, found.issuer.rfc4514_string()


def test_certificates_are_rotated_while_pods_are_created(pool: Kubectl, quickly_rotated: Operator) -> None:
    seen: set[tuple[int, str]] = set()
    made: list[str] = []

    def enough() -> bool:
        name = f"p{len(made)}"
        create(pool, pod(name))
        made.append(name)
        seen.add(served(quickly_rotated))
        return len({issuer for _, issuer in seen}) >= 3

    eventually(enough, seconds=2 * PATIENCE_S, what="certificates of three CAs")
    bodies = {body["metadata"]["name"]: body for body in pool.list("pods")}
    missed = [name for name in made if not is_injected(bodies[name])]
    assert missed == [], f"{len(missed)} of {len(made)} Pods while {len(seen)} certificates were served"
    print(f"{len(made)} Pods, {len(seen)} certificates, {len({issuer for _, issuer in seen})} CAs")  # noqa: T201


def is_trusted(operator: Operator, bundle: str) -> bool:
    """Whether who believes the CAs of a caBundle believes the certificate that the server shows now."""
    context = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
    host = "127.0.0.1"
    try:
        with (
            socket.create_connection((host, operator.webhook_port), timeout=PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return False


def test_a_ca_bundle_taken_away_by_hand_comes_back(pool: Kubectl, operator: Operator) -> None:
    """The bundle may be another one by then, since CAs come and go. What counts is that the certificate is believed."""

    def bundles() -> list[str]:
        found = pool.must_get("mutatingwebhookconfiguration", "kvpool-operator")["webhooks"]
        return [one["clientConfig"].get("caBundle", "") for one in found]

    def all_trusted() -> bool:
        found = bundles()
        return bool(found) and all(is_trusted(operator, one) for one in found)

    assert not is_trusted(operator, "")
    eventually(all_trusted, what="the certificate is announced")
    remove = json.dumps([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}])
    pool("patch", "mutatingwebhookconfiguration", "kvpool-operator", "--type=json", "-p", remove)
    eventually(all_trusted, what="the certificate is announced again")


def test_a_secret_that_was_spoilt_is_made_anew(pool: Kubectl, operator: Operator) -> None:
    before = served(operator)
    system = Kubectl(pool.environment, SYSTEM)
    system("patch", "secret", SECRET, "--type=merge", "-p", '{"data":{"ca.key":"bm90IGEga2V5"}}')
    eventually(lambda: served(operator) != before, what="another certificate")
    await_trust(pool)
    create(pool, pod("one"))
    assert is_injected(pool.must_get("pod", "one"))
    assert "PRIVATE KEY" not in operator.log


def test_the_webhook_answers_within_50_ms(pool: Kubectl, operator: Operator) -> None:
    """Two hundred Pods by four clients at once; the server's own clock counts, from the request's first line to the answer.

    What the machine gave to others is not the webhook's: the best of three tries counts, and of a try in which the operator
    waited for a core as long as it had one, the half.
    """
    tries = []
    for number in range(3):
        tries.append(milliseconds(pool, operator, number))
        if tries[-1] <= 50:
            break
    assert min(tries) <= 50, tries


def milliseconds(pool: Kubectl, operator: Operator, attempt: int) -> float:
    """The 99th percentile of the times of 200 Pods, less the share that the operator waited for a core."""
    operator.stop()
    operator.start()  # its counters begin anew
    ran, waited = operator.on_core()

    def batch(client: int) -> None:
        many = [pod(f"n{attempt}-{client}-{number}") for number in range(50)]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": many})
        done = pool.run("create", "-f", "-", text=text)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(batch, range(4)))
    theirs = [body for body in pool.list("pods") if body["metadata"]["name"].startswith(f"n{attempt}-")]
    assert len(theirs) == 200
    missed = [body["metadata"]["name"] for body in theirs if not is_injected(body)]
    assert missed == [], (calls(operator), operator.log[-2000:])
    assert calls(operator) >= 200  # more, where Pods of an earlier test go
    quantiles = {
        found[1]: float(found[2]) * 1000
        for line in operator.metrics()
        if (found := re.fullmatch(r'kvpool_operator_webhook_seconds\{quantile="([\d.]+)"\} (\S+)', line))
    }
    ran, waited = (now - before for now, before in zip(operator.on_core(), (ran, waited), strict=True))
    own = ran / (ran + waited)
    print(  # noqa: T201
        f"webhook, 200 Pods: p50 {quantiles['0.5']:.1f} ms, p99 {quantiles['0.99']:.1f} ms, "
        f"{1 - own:.0%} of its time the operator waited for a core"
    )
    return quantiles["0.99"] * own
