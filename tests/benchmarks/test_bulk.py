"""The benchmark of many pictures: its pictures, its processes and what it says of them."""

from __future__ import annotations

import json
import os
import sys

import bulk
import pytest
from PIL import Image

from edgecifar.runtime.errors import EdgecifarError


def test_pictures_are_of_the_kind_and_number(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "UNIQUE", {"jpeg": 1, "png": 5})
    for kind, suffix, size, count in (("jpeg", ".jpg", (1600, 1200), 3), ("png", ".png", (32, 32), 12)):
        paths = sorted(bulk.make_pictures(tmp_path / kind, kind, count, 32).iterdir())
        assert [path.name for path in paths] == [f"{number:06}{suffix}" for number in range(count)]
        assert {path.stat().st_ino for path in paths} == {path.stat().st_ino for path in paths[: bulk.UNIQUE[kind]]}
        with Image.open(paths[-1]) as image:
            assert image.size == size
            assert image.format == kind.upper()


def test_a_process_says_its_rate_last():
    found = bulk.run([sys.executable, "-c", "import time; print('9/s\\nrows: 1 in 2 s, 1,234.5/s.'); time.sleep(0.8)"])
    assert found.rate == 1234.5
    assert found.seconds > 0.8
    assert sys.platform != "linux" or found.mib > 3


@pytest.mark.parametrize("code", ["print('fast')", "print('3/s'); raise SystemExit(1)"])
def test_a_process_that_fails_or_says_no_rate(code):
    with pytest.raises(EdgecifarError, match="run it by hand"):
        bulk.run([sys.executable, "-c", code])


def test_a_process_ends_with_whoever_watches_it(monkeypatch):
    """Ctrl-C does not reach it, and its pictures are removed under it."""
    watched = []

    def interrupted(pid):
        watched.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(bulk, "_memory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bulk.run([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    with pytest.raises(ProcessLookupError):
        os.kill(watched[0], 0)


def test_runs_take_turns():
    order: list[str] = []

    def runs(name):
        return lambda: order.append(name) or bulk.Ran(len(order), 1, 1)

    found = bulk.in_turns({name: runs(name) for name in "abc"}, 2)
    assert order == ["a", "b", "c", "b", "c", "a"]
    assert [ran.rate for ran in found["b"]] == [2, 4]


def test_a_row_holds_the_median_and_the_extremes():
    row = bulk.row("s", "w", 10, [bulk.Ran(rate, rate, 5) for rate in (1.0, 9.0, 2.0)], share=0.5)
    assert (row["images_per_second"], row["least"], row["most"], row["n"]) == (2, 1, 9, 3)
    assert row["share"] == 0.5
    text = bulk.table([row])
    assert "share 0.50" in text
    assert "1 to 9" in text


class TestWithKept:
    @pytest.fixture
    def document(self):
        def make(*sections: str, load: float = 0.5, version: str = "1", variant: str = "edge") -> dict:
            rows = [{"section": section, "load": load} for section in sections]
            machine = {"versions": {"numpy": version}, "load_average": [load]}
            return {"machine": machine, "settings": {"variant": variant}, "rows": rows}

        return make

    def test_sections_that_were_not_measured_now_stay(self, document, tmp_path):
        earlier = tmp_path / "bulk.json"
        earlier.write_text(json.dumps(document("jpeg", "png", "peers, jpeg", load=0.5)))
        found = bulk.with_kept(document("memory", "jpeg", load=2.0), earlier)["rows"]
        assert [(one["section"], one["load"]) for one in found] == [
            *(("jpeg", 2.0), ("png", 0.5), ("memory", 2.0), ("peers, jpeg", 0.5)),
        ]

    @pytest.mark.parametrize("other", [{"version": "0"}, {"variant": "tiny"}])
    def test_what_other_versions_or_settings_gave_does_not(self, document, tmp_path, other):
        earlier = tmp_path / "bulk.json"
        earlier.write_text(json.dumps(document("png", **other)))
        now = document("jpeg")
        assert bulk.with_kept(now, earlier) == now
        assert bulk.with_kept(now, tmp_path / "none.json") == now

    @pytest.mark.parametrize("damage", ["", "no JSON", "[]", '{"machine": 1}', "{}", "rows", "section"])
    def test_what_was_measured_is_not_lost_with_a_damaged_file(self, document, tmp_path, damage):
        earlier, now = tmp_path / "bulk.json", document("jpeg")
        wrong = {"rows": now | {"rows": [1]}, "section": now | {"rows": [{"section": "latency"}]}}
        earlier.write_text(json.dumps(wrong[damage]) if damage in wrong else damage)
        assert bulk.with_kept(now, earlier) == now
