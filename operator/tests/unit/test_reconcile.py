"""The status is written whatever the API server answers, and never says more than is true."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_operator import reconcile as module
from kvpool_operator.api import Settings
from kvpool_operator.desired.stores import redis, sentinel
from kvpool_operator.kube import NAMESPACE, POOL, SECRET, ApiError
from kvpool_operator.observe.cache import Cache
from kvpool_operator.reconcile import Reconciler
from kvpool_operator.status.observed import StoreProbe, StoreState

from .fake_api import GARBAGE, LOST, ApiServer, Kind, answer_with, no_fault

KEY = ("team", "demo")
MANAGED: dict[str, Any] = {
    "model": {"name": "m"},
    "backend": {"type": "Redis"},
    "tiers": {"cpu": {"size": "1Gi"}},
    "engines": [{"replicas": 1}],
    "injection": {"allowedNamespaces": ["web"]},
}
REFERENCE = {"name": "mine", "passwordKey": "password", "usernameKey": "user"}
EXTERNAL: dict[str, Any] = {
    **MANAGED,
    "backend": {"type": "Redis", "external": {"host": "redis.example", "auth": {"secretRef": REFERENCE}}},
    "injection": {},
}
MOONCAKE: dict[str, Any] = {**MANAGED, "backend": {"type": "Mooncake", "mooncake": {"ha": True}}}
SPECS = {"managed": MANAGED, "external": EXTERNAL, "mooncake": MOONCAKE}
NO_ANSWER: tuple[Kind, ...] = (0, LOST, *GARBAGE)
LATER: tuple[Kind, ...] = (429, 500, 503)
FAULTS: tuple[tuple[Kind, ...], ...] = (NO_ANSWER, LATER, (403,), (404,), (409,), (422,))
"""What may become of a call, by what a client can make of it."""
TOLD = ("canary", "nobody listens", "the answer is no object of an API server")
"""What a status says of them."""


PROBE = "kvpool_operator.observe.gather.probe_external"


async def available(*_: Any) -> StoreProbe:
    return StoreProbe(StoreState.AVAILABLE, "redis.example:6379 answers")


@pytest.fixture(autouse=True)
def answering_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The external store answers. What a real one says: test_probe.py."""
    monkeypatch.setattr(PROBE, available)


class Operator:
    """An API server with a pool, and a reconciler that has seen nothing yet."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.server = ApiServer()
        self.now = 0.0
        self.server.put(
            NAMESPACE, {"metadata": {"name": "web", "annotations": {"kvpool.dev/accepts-pools": "x/y, team/demo"}}}
        )
        self.write_secret({"kvpool.dev/store-credentials": "true"})
        self.write_pool(spec)
        self.restart()

    def restart(self) -> None:
        """Forget all that was seen."""
        self.reconciler = Reconciler(
            self.server.client, Cache(), Settings(), clock=lambda: self.now, consumers_of=lambda _: (), now=lambda: "t"
        )

    def write_pool(self, spec: dict[str, Any]) -> None:
        self.server.put(POOL, {"metadata": {"namespace": "team", "name": "demo"}, "spec": spec})

    def write_secret(self, labels: dict[str, str], **data: str) -> None:
        values = {"password": "canary-password", "user": "ann", **data}
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.server.put(SECRET, {"metadata": {"namespace": "team", "name": "mine", "labels": labels}, "data": encoded})

    def reconcile(self) -> str:
        """Do it once, long after the last time. Return what the API server did not do; empty: it did all."""
        self.now += 1000.0
        try:
            asyncio.run(self.reconciler.reconcile(KEY))
        except ApiError as error:
            return error.message
        return ""

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get(POOL, *KEY).get("status", {})
        return found

    def condition(self, kind: str = "Ready") -> tuple[str, str, str]:
        """Its status, reason and message."""
        for condition in self.status.get("conditions", ()):
            if condition["type"] == kind:
                return condition["status"], condition["reason"], condition["message"]
        return "", "", ""


def undisturbed(spec: dict[str, Any], before: dict[str, Any] | None) -> Operator:
    operator = Operator(before or spec)
    operator.reconcile()
    if before is not None:
        operator.server.calls.clear()
        operator.write_pool(spec)
        operator.reconcile()
    return operator


def changed(spec: dict[str, Any]) -> dict[str, Any]:
    """Other children of every kind that a running pool can change."""
    return {**spec, "tiers": {"cpu": {"size": "2Gi"}}, "engines": [{"replicas": 2}, {"name": "more"}]}


class Case:
    """A pool that is made, or that is changed while it runs, and what becomes of it without a fault."""

    def __init__(self, spec: dict[str, Any], start: str) -> None:
        self._before = None if start == "first" else spec
        self._spec = spec if start == "first" else changed(spec)
        model = undisturbed(self._spec, self._before)
        assert model.condition()[:2] == ("True", "AllReady")
        self._wanted = model.server.children()
        self.calls = list(model.server.calls)

    def check(self, faults: Mapping[int, Kind]) -> None:
        """Reconcile with faults at some of the calls.

        Ready is True only if all is there as it would be without them. And the next reconciliation mends all.

        Args:
            faults: by the number of the call.
        """
        operator = Operator(self._before or self._spec)
        if self._before is not None:
            operator.reconcile()
            operator.server.calls.clear()
            operator.write_pool(self._spec)
        operator.server.fault = lambda number, request: (
            operator.server.fail(request, faults[number]) if number in faults else None
        )
        said = operator.reconcile()
        broken = [(*call, faults[number]) for number, call in enumerate(operator.server.calls) if number in faults]
        case = f"{broken}: {said or 'no error'}: {operator.condition()}"
        truth, reason, message = operator.condition()
        if truth == "True" and operator.status["observedGeneration"] == generation(operator):
            assert lacks(operator, self._wanted) == set(), case
        elif truth == "Unknown":
            assert any(words in message for words in TOLD), case
            assert reason == "ApiServerFailing", case
        elif not truth:
            assert any(path.endswith(("/kvcachepools/demo", "/status")) for _, path, _ in broken), case
        operator.server.fault = no_fault
        operator.reconcile()
        assert operator.condition()[:2] == ("True", "AllReady"), case
        assert sorted(operator.server.children()) == sorted(self._wanted), case


@pytest.fixture(scope="module", params=[(kind, start) for kind in SPECS for start in ("first", "change")], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    kind, start = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PROBE, available)
        return Case(SPECS[kind], start)


def test_any_error_at_any_call_leaves_a_true_status(case: Case) -> None:
    assert len(case.calls) > 12
    for number in range(len(case.calls)):
        for kinds in FAULTS:
            case.check({number: kinds[number % len(kinds)]})


@given(data=st.data())
@hypothesis.settings(max_examples=30)
def test_several_errors_leave_a_true_status(case: Case, data: st.DataObject) -> None:
    """After a fault the calls are others, or none, so the numbers of some faults are never reached."""
    kinds = st.sampled_from([kind for kinds in FAULTS for kind in kinds])
    numbers = st.integers(0, len(case.calls) + 5)
    case.check(data.draw(st.dictionaries(numbers, kinds, min_size=2, max_size=8)))


def lacks(operator: Operator, wanted: dict[str, str]) -> set[str]:
    """Children that are missing without being told: those in another namespace have a condition of their own."""
    missing = set(wanted) - set(operator.server.children())
    if operator.condition("InjectionReady")[0] == "False":
        missing = {path for path in missing if "/namespaces/web/" not in path}
    return missing


def generation(operator: Operator) -> int:
    found: int = operator.server.get(POOL, *KEY)["metadata"]["generation"]
    return found


def test_a_store_that_cannot_be_made_is_not_ready() -> None:
    """Another webhook answers 500 for one kind, for ever: the other children are written."""
    operator = Operator(MANAGED)
    operator.server.fault = lambda _, request: (
        answer_with(500) if request.url.path.endswith("deployments/demo-store") and request.method == "PATCH" else None
    )
    assert "writing Deployment demo-store: canary 500" in operator.reconcile()
    assert operator.condition()[0] == "False"
    assert "/apis/apps/v1/namespaces/team/deployments/demo-engine" in operator.server.children()


def test_a_secret_that_a_quota_refuses_is_in_the_status() -> None:
    operator = Operator(MANAGED)
    operator.server.fault = lambda _, request: (
        answer_with(403) if request.method == "POST" and "secrets" in request.url.path else None
    )
    assert operator.reconcile() == ""
    truth, reason, message = operator.condition()
    assert (truth, reason) == ("False", "ApplyRefused")
    assert "Secret demo-store-auth: canary 403" in message


def test_a_fault_of_the_operator_is_in_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised for the log all the same."""

    def broken(_: Any) -> list[Any]:
        raise TypeError("unhashable type: 'dict'")

    operator = Operator(MANAGED)
    operator.reconcile()
    monkeypatch.setattr(module, "desired", broken)
    with pytest.raises(TypeError):
        operator.reconcile()
    assert operator.condition()[:2] == ("Unknown", "OperatorFault")


@pytest.fixture
def running() -> Iterator[Operator]:
    """A pool with an external store and its Secret, all of it ready; nothing of it changes in the test."""
    operator = Operator(EXTERNAL)
    operator.reconcile()
    assert operator.condition()[:2] == ("True", "AllReady")
    before = operator.server.children()
    config = operator.status["config"]
    yield operator
    assert operator.server.children() == before
    assert operator.status["config"] == config


@pytest.mark.parametrize("fault", ["deleted", "emptied", "label removed", "not answered", "forbidden"])
def test_a_secret_that_goes_changes_nothing_but_the_status(running: Operator, fault: str) -> None:
    """The user's name in it is part of the configuration: without it all engines would be rolled."""
    path = SECRET.object_path("team", "mine")
    if fault == "deleted":
        del running.server.objects[path]
    elif fault == "emptied":
        running.server.objects[path]["data"] = {}
    elif fault == "label removed":
        running.server.objects[path]["metadata"]["labels"] = {}
    else:
        status = 500 if fault == "not answered" else 403
        running.server.fault = lambda _, request: answer_with(status) if request.url.path == path else None
    running.reconcile()
    truth, reason, message = running.condition()
    expected = {
        "deleted": ("False", "SecretMissing"),
        "emptied": ("False", "SecretMissing"),
        "label removed": ("False", "SecretNotOffered"),
    }
    assert (truth, reason) == expected.get(fault, ("Unknown", "ApiServerFailing"))
    assert "canary-password" not in message


def test_a_secret_without_consent_is_mounted_by_nothing() -> None:
    """Neither the operator nor an engine sends it to an address that the pool's author chose."""
    operator = Operator(EXTERNAL)
    operator.write_secret({})
    operator.reconcile()
    assert operator.condition()[:2] == ("False", "SecretNotOffered")
    assert "kubectl label secret" in operator.condition()[2]
    assert not [path for path in operator.server.children() if "deployments" in path]
    operator.write_secret({"kvpool.dev/store-credentials": "true"})
    operator.reconcile()
    assert operator.condition()[:2] == ("True", "AllReady")


@pytest.mark.parametrize("annotation", [None, "", "team/other", "other/demo", "demo", "team/demo2"])
def test_nothing_is_written_into_a_namespace_that_does_not_take_the_pool(annotation: str | None) -> None:
    operator = Operator(MANAGED)
    annotations = {} if annotation is None else {"kvpool.dev/accepts-pools": annotation}
    operator.server.put(NAMESPACE, {"metadata": {"name": "web", "annotations": annotations}})
    operator.reconcile()
    assert not [path for path in operator.server.children() if "/namespaces/web/" in path]
    truth, reason, message = operator.condition("InjectionReady")
    assert (truth, reason) == ("False", "NamespaceDoesNotAccept")
    assert "kubectl annotate namespace web kvpool.dev/accepts-pools=team/demo" in message


def test_a_namespace_that_no_longer_takes_the_pool_loses_its_copies() -> None:
    operator = Operator(MANAGED)
    operator.reconcile()
    assert [path for path in operator.server.children() if "/namespaces/web/" in path]
    operator.server.put(NAMESPACE, {"metadata": {"name": "web"}})
    operator.reconcile()
    assert not [path for path in operator.server.children() if "/namespaces/web/" in path]


def test_copies_stay_where_the_operator_may_no_longer_look() -> None:
    """A right that was taken from it is no consent that was taken back."""
    operator = Operator(MANAGED)
    operator.reconcile()
    before = operator.server.children()
    operator.server.fault = lambda _, request: (
        answer_with(403) if request.url.path == "/api/v1/namespaces/web" else None
    )
    for _ in range(2):
        operator.reconcile()
        assert operator.server.children() == before


def test_copies_stay_while_nobody_says_what_a_namespace_takes() -> None:
    operator = Operator(MANAGED)
    operator.reconcile()
    before = operator.server.children()
    operator.server.fault = lambda _, request: (
        answer_with(500) if request.url.path == "/api/v1/namespaces/web" else None
    )
    operator.reconcile()
    assert operator.condition()[:2] == ("Unknown", "ApiServerFailing")
    assert operator.server.children() == before


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/v1/namespaces/web"), ("PATCH", "/api/v1/namespaces/web/configmaps/team.demo-connector")],
    ids=["its Namespace", "a copy"],
)
def test_what_pods_of_a_namespace_lack_is_not_known_while_nobody_answers(method: str, path: str) -> None:
    operator = Operator(MANAGED)
    operator.server.fault = lambda _, request: (
        answer_with(500) if (request.method, request.url.path) == (method, path) else None
    )
    assert "canary 500" in operator.reconcile()
    assert operator.condition("InjectionReady")[:2] == ("Unknown", "ApiServerFailing")


def test_injection_is_not_ready_while_the_pool_is_held() -> None:
    """Nothing is written for Pods of others either."""
    operator = Operator(EXTERNAL)
    operator.write_secret({})
    operator.reconcile()
    assert operator.condition("InjectionReady")[:2] == ("Unknown", "SecretNotOffered")
    operator = Operator(MANAGED)
    operator.server.fault = lambda _, request: (
        answer_with(403) if request.method == "POST" and "secrets" in request.url.path else None
    )
    operator.reconcile()
    assert operator.condition("InjectionReady")[:2] == ("Unknown", "ApplyRefused")


def test_a_fresh_operator_says_nothing_of_children_that_it_could_not_list() -> None:
    operator = Operator(MANAGED)
    operator.reconcile()
    operator.restart()
    operator.server.fault = lambda _, request: (
        answer_with(500) if request.url.path.endswith("/v1/deployments") else None
    )
    operator.reconcile()
    for kind in ("Ready", "BackendAvailable", "EnginesReady"):
        assert operator.condition(kind)[:2] == ("Unknown", "ApiServerFailing")
        assert "reading the pool's objects: canary 500" in operator.condition(kind)[2]
    assert not operator.status.keys() & {"engines", "enginesReady"}
    operator.server.fault = no_fault
    operator.reconcile()
    assert operator.status["enginesReady"] == "1/1"


def test_children_that_were_listed_once_are_known() -> None:
    """Watches tell of them since."""
    operator = Operator(MANAGED)
    operator.reconcile()
    operator.server.fault = lambda _, request: (
        answer_with(500) if request.url.path.endswith("/v1/deployments") else None
    )
    operator.reconcile()
    assert operator.condition()[:2] == ("Unknown", "ApiServerFailing")
    assert operator.status["enginesReady"] == "1/1"


def copies(operator: Operator) -> list[str]:
    return [path for path in operator.server.children() if "/namespaces/web/" in path]


def withdraw(operator: Operator) -> None:
    operator.server.put(NAMESPACE, {"metadata": {"name": "web"}})


PAUSED = {**MANAGED, "paused": True}
INVALID = {**MANAGED, "tiers": {"cpu": {"size": "none"}}}


@pytest.mark.parametrize("spec", [PAUSED, INVALID], ids=["paused", "invalid"])
def test_a_withdrawn_consent_is_followed_although_nothing_is_written(spec: dict[str, Any]) -> None:
    """The copies have passwords in them, and the namespace is not the pool's."""
    operator = Operator(MANAGED)
    operator.reconcile()
    operator.write_pool(spec)
    operator.reconcile()
    before = operator.server.children()
    assert copies(operator)
    withdraw(operator)
    operator.reconcile()
    assert copies(operator) == []
    assert operator.server.children().items() <= before.items()
    assert len(operator.server.children()) == len(before) - 3


def test_a_withdrawn_consent_is_followed_while_the_pool_is_held() -> None:
    operator = Operator(MANAGED)
    operator.reconcile()
    withdraw(operator)
    operator.server.fault = lambda _, request: (
        answer_with(500) if request.url.path.endswith("/v1/deployments") else None
    )
    operator.reconcile()
    assert operator.condition()[:2] == ("Unknown", "ApiServerFailing")
    assert copies(operator) == []


@pytest.mark.parametrize("spec", [PAUSED, INVALID], ids=["paused", "invalid"])
def test_copies_stay_while_nothing_is_written_and_nobody_withdraws(spec: dict[str, Any]) -> None:
    operator = Operator(MANAGED)
    operator.reconcile()
    operator.write_pool(spec)
    before = operator.server.children()
    operator.reconcile()
    withdraw(operator)
    operator.server.fault = lambda _, request: (
        answer_with(500) if request.url.path == "/api/v1/namespaces/web" else None
    )
    assert "reading namespaces: canary 500" in operator.reconcile()
    assert operator.server.children() == before


@pytest.mark.parametrize("spec", [PAUSED, INVALID], ids=["paused", "invalid"])
def test_a_copy_that_could_not_be_deleted_is_tried_again(spec: dict[str, Any]) -> None:
    operator = Operator(MANAGED)
    operator.reconcile()
    operator.write_pool(spec)
    withdraw(operator)
    operator.server.fault = lambda _, request: answer_with(500) if request.method == "DELETE" else None
    assert "canary 500" in operator.reconcile()
    operator.server.fault = no_fault
    assert operator.reconcile() == ""
    assert copies(operator) == []


def data_of(operator: Operator, name: str) -> dict[str, str]:
    data = operator.server.get(SECRET, "team", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def edit_password(operator: Operator, password: str, *, keep: bool = True) -> None:
    """As a person does, or a tool that keeps a Secret in step with a vault.

    Args:
        keep: keep what else is in the Secret; some tools do not.
    """
    secret = operator.server.get(SECRET, "team", "demo-store-auth")
    value = {"password": base64.b64encode(password.encode()).decode()}
    operator.server.put(SECRET, {**secret, "data": {**secret["data"], **value} if keep else value})
    operator.restart()


@pytest.mark.parametrize("name", ["demo-store-auth", "demo-store-users", "demo-group-auth", "demo-hash-seed"])
def test_a_secret_of_somebody_elses_is_neither_mounted_nor_copied(name: str) -> None:
    """It has the name of one of the pool's own. Nothing is written that leads to what it holds."""
    operator = Operator({**MANAGED, "backend": {"type": "Redis", "mode": "Sentinel"}})
    value = base64.b64encode(b"payroll").decode()
    data = {"password": value, "seed": value, redis.ACL_KEY: value}
    foreign = {"metadata": {"name": name, "namespace": "team", "uid": "theirs"}, "data": data}
    operator.server.put(SECRET, foreign)
    operator.reconcile()
    assert operator.condition()[:2] != ("True", "Ready")
    written = operator.server.children()
    assert not [path for path, body in written.items() if "secrets" not in path or value in str(body)]
    assert "does not belong to this pool" in str(operator.status)


@pytest.mark.parametrize("keep", [True, False], ids=["edited", "replaced"])
@pytest.mark.parametrize("mode", ["Single", "Sentinel"])
def test_a_password_that_is_changed_in_place_rolls_nothing(mode: str, keep: bool) -> None:
    """The new one and the former one are valid, since Pods see a changed Secret at different times."""
    operator = Operator({**MANAGED, "backend": {"type": "Redis", **({} if mode == "Single" else {"mode": mode})}})
    operator.reconcile()
    first = data_of(operator, "demo-store-auth")["password"]
    files = [("demo-store-users", redis.ACL_KEY)]
    if mode == "Sentinel":
        files.append(("demo-group-auth", sentinel.ACL_KEY))
    valid = [first]
    for password in ("second", "third\n"):
        before = operator.server.children()
        edit_password(operator, password, keep=keep)
        operator.reconcile()
        valid = [password.strip(), valid[0]]
        digests = [f"#{redis.password_digest(word)}" for word in valid]
        for name, key in files:
            (line,) = [line for line in data_of(operator, name)[key].splitlines() if line.startswith("user kvpool ")]
            assert [word for word in line.split() if word.startswith("#")] == digests
        after = operator.server.children()
        assert not [path for path in after if after[path] != before[path] and "secrets" not in path]
        assert data_of(operator, "demo-store-auth")["password"] == valid[0]
        settled = operator.server.children()
        operator.restart()
        operator.reconcile()
        assert operator.server.children() == settled
    copy = operator.server.get(SECRET, "web", "team.demo-store-auth")["data"]["password"]
    assert base64.b64decode(copy) == b"third"


def test_a_deleted_password_stays_valid_while_engines_roll() -> None:
    operator = Operator(MANAGED)
    operator.reconcile()
    first = data_of(operator, "demo-store-auth")["password"]
    del operator.server.objects[SECRET.object_path("team", "demo-store-auth")]
    operator.restart()
    operator.reconcile()
    users = data_of(operator, "demo-store-users")[redis.ACL_KEY]
    assert f"#{redis.password_digest(first)}" in users
    assert f"#{redis.password_digest(data_of(operator, 'demo-store-auth')['password'])}" in users


def test_a_password_ends_at_once_with_the_users() -> None:
    """Nothing is left of the former one where its digest is deleted."""
    operator = Operator(MANAGED)
    operator.reconcile()
    first = data_of(operator, "demo-store-auth")["password"]
    edit_password(operator, "second")
    del operator.server.objects[SECRET.object_path("team", "demo-store-users")]
    operator.reconcile()
    assert redis.password_digest(first) not in data_of(operator, "demo-store-users")[redis.ACL_KEY]
