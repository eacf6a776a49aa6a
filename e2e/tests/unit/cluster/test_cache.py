"""The cache: named by inputs, complete or absent."""

import threading
from pathlib import Path

import pytest

from e2e.cluster.local import build, cache
from e2e.cluster.progress import Progress
from testkit.patience import PATIENCE_S


def test_the_key_follows_content_and_order_but_not_place(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "go.mod").write_text("module x")
    key = cache.key_of(["flags", tmp_path / "a/go.mod"])
    assert cache.key_of(["flags", tmp_path / "b/go.mod"]) == key
    assert cache.key_of([tmp_path / "a/go.mod", "flags"]) != key
    assert cache.key_of(["flag", "s", tmp_path / "a/go.mod"]) != key
    (tmp_path / "a/go.mod").write_text("module y")
    assert cache.key_of(["flags", tmp_path / "a/go.mod"]) != key


def test_a_result_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []
    for _ in range(2):
        place = cache.folder(tmp_path, "bin", ["x"], made.append, Progress())
        assert place.is_dir()
    assert len(made) == 1


def test_an_interrupted_run_leaves_no_result_and_the_next_starts_clean(tmp_path: Path) -> None:
    def interrupted(place: Path) -> None:
        (place / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.folder(tmp_path, "bin", ["x"], interrupted, Progress())
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    done = cache.folder(tmp_path, "bin", ["x"], lambda place: (place / "whole").touch(), Progress())
    assert [path.name for path in done.iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".*.unfinished"))


def test_two_that_want_the_same_result_take_turns(tmp_path: Path) -> None:
    running, entered = threading.Event(), threading.Event()
    made: list[str] = []

    def slow(_: Path) -> None:
        entered.set()
        assert running.wait(PATIENCE_S)
        made.append("first")

    def want(make: str) -> None:
        cache.folder(tmp_path, "bin", ["x"], slow if make == "slow" else lambda _: made.append("second"), Progress())

    first = threading.Thread(target=want, args=["slow"])
    first.start()
    assert entered.wait(PATIENCE_S)
    second = threading.Thread(target=want, args=["quick"])
    second.start()
    second.join(0.2)
    assert second.is_alive()  # it waits for the first
    running.set()
    first.join(PATIENCE_S)
    second.join(PATIENCE_S)
    assert made == ["first"]


def test_the_build_has_the_version_of_the_module_and_pins_all_inputs() -> None:
    version = build.kubernetes_version()
    assert f"component-base/version.gitVersion=v{version}" in build.linker_flags(version)
    names = {f"{path.parent.name}/{path.name}" for path in build.inputs() if isinstance(path, Path)}
    assert names >= {f"{program}/{file}" for program in ("kube", "coredns") for file in ("go.mod", "go.sum", "main.go")}
    assert names >= {"pause/go.mod", "pause/main.go"}
