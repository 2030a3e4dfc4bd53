"""When a job starts, who plays in it under which number, and who is turned away."""

from __future__ import annotations

from typing import Any

from ff_core.contract.alike import launch_line
from ff_core.contract.job import JobSpec
from ff_core.controller.rendezvous import Arrival, Rendezvous


class Meeting:
    """A rendezvous with a clock."""

    def __init__(self, least: int, most: int = 0, **job: Any) -> None:
        times = {"join_timeout_s": 100.0, "last_call_s": 10.0}
        self.job = JobSpec(["train.py"], least, 2, "", 0, most_nodes=most, **times, **job)
        self.line = launch_line(self.job)
        self.now = 1000.0
        self.rendezvous = Rendezvous(self.job, self.line, self.now)
        self.said: list[str] = []

    def come(self, name: str, asked: int = -1, *, standby: bool = False) -> Arrival:
        arrival = Arrival(name, "10.0.0.1", asked, standby, self.line)
        assert self.rendezvous.problem(arrival) == ""
        self.said.append(self.rendezvous.come(arrival, self.now))
        return arrival

    def admitted(self) -> dict[int, str]:
        return {arrival.node: arrival.hostname for arrival in self.rendezvous.admitted(self.now)}


def test_a_fixed_number_starts_when_all_are_there_in_the_order_of_their_names() -> None:
    meeting = Meeting(4)
    for name in ("n10", "n2", "b7"):
        meeting.come(name)
    assert meeting.admitted() == {} and meeting.said[-1] == "b7 (10.0.0.1) is here; 1 of 4 nodes are still to come"
    meeting.come("n9", 0)  # the controller's own
    assert meeting.admitted() == {0: "n9", 1: "b7", 2: "n2", 3: "n10"}
    assert meeting.rendezvous.size == 4


def test_the_controllers_node_trains_even_if_it_comes_last() -> None:
    meeting = Meeting(2)
    for name in ("b", "c"):
        meeting.come(name)
    assert meeting.admitted() == {}
    meeting.come("z", 0)
    assert meeting.admitted() == {0: "z", 1: "b", 2: "c"} and meeting.rendezvous.size == 2


def test_whoever_comes_later_stands_by_under_a_new_number() -> None:
    meeting = Meeting(1)
    meeting.come("a", 0)
    assert meeting.admitted() == {0: "a"} and meeting.admitted() == {}
    meeting.come("a")
    assert meeting.admitted() == {1: "a"}
    meeting.rendezvous.lost(1)
    meeting.come("a")
    assert meeting.admitted() == {2: "a"}, "a number is given once"


def test_a_range_waits_for_a_last_call_and_starts_at_once_when_it_is_full() -> None:
    meeting = Meeting(2, 4)
    meeting.come("a", 0)
    meeting.now += 50
    meeting.come("b")
    meeting.now += 9
    assert meeting.admitted() == {}
    meeting.come("c")
    meeting.now += 1
    assert meeting.admitted() == {0: "a", 1: "b", 2: "c"} and meeting.rendezvous.size == 3
    full = Meeting(2, 3)
    for name in ("b", "c"):
        full.come(name)
    full.come("a", 0)
    assert len(full.admitted()) == 3


def test_the_last_call_begins_anew_when_one_has_gone() -> None:
    meeting = Meeting(2, 4)
    meeting.come("a", 0)
    gone = meeting.come("b")
    meeting.now += 9
    said = meeting.rendezvous.leave(gone)
    assert said == "b (10.0.0.1) has gone before the job began; 1 of 2 to 4 nodes are still to come"
    meeting.now += 50
    assert meeting.admitted() == {}
    meeting.come("c")
    assert meeting.admitted() == {}
    meeting.now += 10
    assert meeting.admitted() == {0: "a", 1: "c"}


def test_a_standby_is_nobody_the_job_waits_for() -> None:
    meeting = Meeting(2)
    meeting.come("s", standby=True)
    meeting.come("a", 0)
    assert meeting.admitted() == {} and "to stand by; 2 of 2 nodes are still to come" in meeting.said[0]
    meeting.come("b")
    assert meeting.admitted() == {0: "a", 1: "b", 2: "s"} and meeting.rendezvous.size == 2


def test_numbers_of_their_own() -> None:
    meeting = Meeting(2, numbered=True)
    meeting.come("b", 0)
    twice, none = Arrival("c", "", 0, False, meeting.line), Arrival("c", "", 2, False, meeting.line)
    assert meeting.rendezvous.problem(twice) == "--node-rank 0 was given twice, on b and on c"
    assert meeting.rendezvous.problem(none) == "node 2 is not one of the job's 2 nodes"
    meeting.come("s", standby=True)
    meeting.come("a", 1)
    assert meeting.admitted() == {0: "b", 1: "a", 2: "s"}
    again = Arrival("c", "", 1, False, meeting.line)
    assert meeting.rendezvous.problem(again) == "--node-rank 1 was given twice, on a and on c"
    meeting.rendezvous.lost(1)
    meeting.come("c", 1)
    assert meeting.admitted() == {3: "c"}, "its number is new, its ranks are elsewhere"


def test_some_with_a_number_and_some_without() -> None:
    meeting = Meeting(2, numbered=True)
    other = launch_line(JobSpec(["train.py"], 2, 2, "", 0))
    assert meeting.rendezvous.problem(Arrival("c", "1.1.1.1", -1, False, other)) == (
        "c (1.1.1.1) was started otherwise than node 0: --node-rank is not there, at node 0 it is given"
    )


def test_too_few_in_time() -> None:
    meeting = Meeting(2, 3)
    meeting.come("a", 0)
    meeting.now += 99
    assert meeting.rendezvous.overdue(meeting.now) == ""
    assert meeting.rendezvous.reminder(meeting.now) == "1 of 2 to 3 nodes are still to come"
    assert meeting.rendezvous.reminder(meeting.now) == ""
    meeting.now += 1
    assert meeting.rendezvous.overdue(meeting.now).startswith(
        "1 of 2 to 3 nodes are still to come, and 100 s are over (--rdzv-conf join_timeout=SECONDS)"
    )
    meeting.come("b")
    assert meeting.rendezvous.overdue(meeting.now) == ""
