"""Client states: what load_checkpoint() gives in a replacement."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ff_core.errors import FailoverError, UnsupportedError
from ff_core.state import codec
from ff_deepspeed import client
from ff_deepspeed.client import ClientState, answer, client_state, first_answer


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(client, "_function", None)
    yield


def through_a_slot(state: ClientState) -> dict:
    return codec.decode(codec.encode(state.save()))


def test_registered_function_wins() -> None:
    state = ClientState()
    state.saved(5, "dir/global_step5", {"step": 5})
    step = 7

    @client_state
    def where() -> dict:
        return {"step": step}

    assert answer(through_a_slot(state), 7, "memory") == ("memory", {"step": 7})
    assert state.current() == {"step": 7}


def test_what_the_script_saved_counts_only_at_its_own_step() -> None:
    state = ClientState()
    own = {"step": 5, "history": [1.5]}
    state.saved(5, "dir/global_step5", own)
    own["history"].append(2.5)  # after saving
    assert answer(through_a_slot(state), 5, "memory") == ("dir/global_step5", {"step": 5, "history": [1.5]})
    with pytest.raises(FailoverError, match=r"of step 5, the job is at step 6.*client_state.*ff_deepspeed\.batches"):
        answer(through_a_slot(state), 6, "memory")


def test_nothing_saved_or_not_encodable_is_an_error_that_says_so() -> None:
    state = ClientState()
    with pytest.raises(FailoverError, match="has saved none yet"):
        answer(through_a_slot(state), 3, "memory")
    state.saved(3, "dir", {"model": object()})
    with pytest.raises(FailoverError, match=r"cannot be kept in memory .*client_state\['model'\]"):
        answer(through_a_slot(state), 3, "memory")


def test_what_the_job_began_with() -> None:
    state = ClientState()
    assert first_answer(through_a_slot(state)) == (0, (None, None))
    state.loaded(100, "dir/global_step100", {"epoch": 2})
    state.saved(120, "dir/global_step120", {"epoch": 3})
    assert first_answer(through_a_slot(state)) == (100, ("dir/global_step100", {"epoch": 2}))
    newcomer = ClientState()
    newcomer.load(through_a_slot(state))
    assert first_answer(newcomer.save()) == (100, ("dir/global_step100", {"epoch": 2}))
    assert newcomer.current() == {"epoch": 3}


def test_bad_registrations_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="allowed: a function"):
        client_state({"step": 1})  # type: ignore[arg-type]
    client_state(lambda: 5)  # type: ignore[arg-type, return-value]
    with pytest.raises(UnsupportedError, match="returned 5; allowed: a dict"):
        ClientState().save()
