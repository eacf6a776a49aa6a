"""What is said about disk, time and caches at the end of a run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from e2e import footprint
from e2e.cluster.local import build, cache


def test_a_file_that_two_caches_share_is_counted_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "wheel").write_bytes(b"x" * 3_000_000)
    os.link(one / "wheel", two / "wheel")
    first, absent, second = footprint.filled([one, tmp_path / "absent", two])
    assert first >= 3_000_000
    assert absent == 0
    assert second < 1_000_000


def test_folders_follow_the_variables_of_their_owners() -> None:
    default = [str(place.folder) for place in footprint.places({"HOME": "/h"})]
    assert default[0] == "/h/.cache/kvpool"
    assert default[2:] == ["/h/.cache/uv", "/h/go/pkg/mod", "/h/.cache/go-build"]
    moved = {"KVPOOL_CACHE": "/k", "UV_CACHE_DIR": "/u", "GOMODCACHE": "/m", "GOCACHE": "/b"}
    assert [str(place.folder) for place in footprint.places(moved)][2:] == ["/u", "/m", "/b"]
    elsewhere = footprint.places({"HOME": "/h", "XDG_CACHE_HOME": "/x", "GOPATH": "/g"})
    assert [str(place.folder) for place in elsewhere][2:] == ["/x/uv", "/g/pkg/mod", "/x/go-build"]


def test_the_table_leaves_out_what_is_empty() -> None:
    rows = [
        (footprint.Place("a", Path("/a")), 1_500_000_000),
        (footprint.Place("b", Path("/b")), 0),
    ]
    assert [line.split() for line in footprint.table(rows).splitlines()] == [
        ["a", "1.5", "GB", "/a"],
        ["disk", "in", "all", "1.5", "GB"],
    ]


def test_results_of_other_pins_do_not_make_a_cache_warm(tmp_path: Path) -> None:
    for name in ("engine-0123456789abcdef", "bin-0123456789abcdef", "models"):
        (tmp_path / name).mkdir()
    assert footprint.missing(tmp_path) == [footprint.VLLM, footprint.KUBERNETES]
    (tmp_path / f"bin-{cache.key_of(build.inputs())}").mkdir()
    assert footprint.missing(tmp_path) == [footprint.VLLM]
    assert footprint.phrase([]) == "warm"
    assert footprint.phrase(["a", "b"]) == "cold: without a, b"


def test_a_demo_tells_its_time_from_the_very_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "disk", lambda: "disk in all")
    began = str(int(time.time()) - 125)
    text = footprint.closing({footprint.BEGAN: began, footprint.CACHES: "warm"})
    assert text.startswith("disk in all\ntime in all, set-up included: 2 min ")
    assert text.endswith("caches at the start: warm")
    assert footprint.closing({}) == "disk in all"
    assert footprint.duration(59) == "59 s"


def test_another_question_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert footprint.main([]) == 2
    assert "caches|disk" in capsys.readouterr().err
