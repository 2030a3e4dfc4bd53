from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ff_core.observe import report
from ff_core.observe.events import PHASES, EventLog
from ff_core.observe.html import render
from ff_core.observe.story import load_story
from tests.observe import jobs


class Checker(HTMLParser):
    """Collects texts, and complains about tags that are not closed or that load something."""

    VOID = frozenset({"meta", "br", "rect", "line", "path", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name, value in attrs:
            assert name not in ("src", "href")
            assert "url(" not in (value or "")
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert "http" not in page
    return checker


def test_report_of_two_failovers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.two_failovers(tmp_path)
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "4 ranks on 2 nodes, 13.1 s, ended well; version 40 safe on every rank" in out
    for name in PHASES:
        assert name in out
    assert out.count("0.300") == 2
    assert "what a copied version costs" in out and out.count("1.25") == 4
    assert f"page: {tmp_path}/report.html" in out
    assert "from version 0 on, interval 1: as measured; a death costs at most 1 finished iteration and" in out
    assert "from version 12 on, interval 4: at 1 copying stops rank 2; a death costs at most 7 finished it" in out
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert [failover["dead"] for failover in numbers["failovers"]] == [[2], [0]]

    checker = check((tmp_path / "report.html").read_text())
    assert checker.count["svg"] == 4
    text = " ".join(checker.texts)
    assert "rank 2 was killed by signal 9" in text
    assert "rank 2, process 202 on node 1 (spare)" in text
    assert "15.0 MiB" in text
    assert "lost ms median" in text and "at 1 copying stops rank 2" in text
    assert [chosen["interval"] for chosen in numbers["intervals"]] == [1, 4]
    assert "1.250" in text
    assert numbers["rank_stats"]["3"]["versions"] == 41


def test_page_follows_the_colour_scheme(tmp_path: Path) -> None:
    jobs.two_failovers(tmp_path)
    page = render(load_story(tmp_path), "job")
    light, dark = page.split("@media (prefers-color-scheme: dark)")
    defined = set(re.findall(r"(--[a-z]+):#", light))
    assert defined == set(re.findall(r"(--[a-z]+):#", dark.split("</style>")[0]))
    assert set(re.findall(r"var\((--[a-z]+)\)", page)) <= defined
    assert {f"--{name}" for name in PHASES} <= defined


def test_text_of_a_failed_job_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.failed_at_once(tmp_path)
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "ended with exit code 1" in out
    assert "no failover" in out
    checker = check((tmp_path / "report.html").read_text())
    assert 'Traceback: <module> & "x" </script>' in checker.texts


def test_log_without_any_event(tmp_path: Path) -> None:
    EventLog(tmp_path).close()
    assert report.main([str(tmp_path)]) == 0
    check((tmp_path / "report.html").read_text())


def test_losses_that_are_no_numbers_and_very_long_runs(tmp_path: Path) -> None:
    jobs.two_failovers(tmp_path)
    losses = {step: float("nan") if step % 7 == 0 else 1 / (step + 1) for step in range(100_000)}
    lines = "\n".join(json.dumps({"step": step, "loss": loss}) for step, loss in losses.items())
    (tmp_path / "losses.jsonl").write_text(lines)
    page = render(load_story(tmp_path), "job")
    check(page)
    assert "nan" not in page
    assert len(page) < 200_000


def test_places_for_page_and_numbers(tmp_path: Path) -> None:
    jobs.two_failovers(tmp_path / "job")
    where = [tmp_path / "a" / "page.html", tmp_path / "b" / "numbers.json"]
    assert report.main([str(tmp_path / "job"), "--html", str(where[0]), "--json", str(where[1])]) == 0
    assert all(path.is_file() for path in where)
    assert not (tmp_path / "job" / "report.html").exists()


def test_directory_without_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} is not the output directory of a job" in error


def test_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.two_failovers(tmp_path)
    assert report.main([str(tmp_path), "--html", str(tmp_path)]) == 2
    assert "cannot be written: Is a directory" in capsys.readouterr().err
