"""The default store, and the one that groups connect through: both wait without blocking the shared connection."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from ff_core.comm import GroupRegistry, Journal
from ff_core.comm.client import RendezvousStore, StoreClient
from ff_core.errors import FailoverInterrupt
from tests.comm.harness import Host


def test_default_store_behaves_as_torchs(registry: GroupRegistry) -> None:
    store = dist.distributed_c10d._get_default_store()
    store.set("a", "1")
    assert store.get("a") == b"1"
    assert store.add("n", 2) == 2
    assert store.add("n", 3) == 5
    assert store.check(["a"]) and not store.check(["a", "b"])
    assert store.compare_set("a", "1", "2") == b"2"
    store.multi_set(["x", "y"], ["3", "4"])
    assert store.multi_get(["x", "y"]) == [b"3", b"4"]
    store.append("x", "5")  # type: ignore[attr-defined]
    assert store.get("x") == b"35"
    assert store.delete_key("x")
    assert not store.check(["x"])
    store.set_timeout(timedelta(milliseconds=50))
    begin = time.monotonic()
    with pytest.raises(dist.DistStoreError, match=r"timeout after 100ms, keys: .*nobody"):
        store.wait(["nobody"], timedelta(milliseconds=100))
    assert time.monotonic() - begin >= 0.1


def test_waiting_ends_when_the_key_appears(registry: GroupRegistry) -> None:
    store = dist.distributed_c10d._get_default_store()
    timer = threading.Timer(0.2, lambda: store.set("later", "here"))
    timer.start()
    assert store.get("later") == b"here"
    timer.join()


def test_halt_ends_a_wait(registry: GroupRegistry) -> None:
    store = dist.distributed_c10d._get_default_store()
    timer = threading.Timer(0.2, registry.halt, [4])
    timer.start()
    with pytest.raises(FailoverInterrupt) as caught:
        store.get("nobody sets this")
    assert caught.value.epoch == 4
    timer.join()
    with pytest.raises(FailoverInterrupt):
        store.set("a", "1")


def test_every_epoch_has_keys_of_its_own(registry: GroupRegistry) -> None:
    store = dist.distributed_c10d._get_default_store()
    assert store.add("barrier", 1) == 1
    registry.halt(1)
    registry.drop()
    registry.regroup(1)
    assert store.add("barrier", 1) == 1  # the half-done count of the interrupted iteration is gone


def test_the_store_has_moved(registry: GroupRegistry) -> None:
    """Another launcher's: the next epoch connects there, and finds nothing of what the old one held."""
    before = registry.client.get()
    before.set("old", "1")
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    registry.halt(1)
    registry.drop()
    registry.client.moved("127.0.0.1", other.port)
    assert registry.client.get() is not before
    registry.client.moved("127.0.0.1", other.port)
    registry.regroup(1)
    store = dist.distributed_c10d._get_default_store()
    store.set("a", "1")
    assert not registry.client.get().check(["old"]) and other.num_keys() >= 1


def test_a_store_that_has_died_is_waited_for_as_for_any_failure(
    registry: GroupRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead:
        def __getattr__(self, name: str) -> Any:
            def fails(*arguments: Any) -> None:
                raise dist.DistNetworkError("connection was reset")

            return fails

    store = registry._stores[0]
    store.set("a", "1")  # it is connected
    monkeypatch.setattr(store, "_inner", Dead())
    registry.host.verdict_s = 20.0  # type: ignore[attr-defined]
    for use in (lambda: store.set("a", "1"), lambda: store.add("n", 1), lambda: store.get("a")):
        registry.host.announced = None  # type: ignore[attr-defined]
        timer = threading.Timer(0.05, setattr, [registry.host, "announced", 3])
        timer.start()
        with pytest.raises(FailoverInterrupt):
            use()
        timer.join()
    registry.host.announced, registry.host.verdict_s = None, 0.05  # type: ignore[attr-defined]
    with pytest.raises(dist.DistNetworkError, match="reset"):
        store.set("a", "1")


def test_rendezvous_is_abandoned_at_once(registry: GroupRegistry) -> None:
    def over() -> None:
        raise RuntimeError("epoch is over")

    store = RendezvousStore(registry.client.get(), "ff/9/0", over)
    with pytest.raises(RuntimeError, match="epoch is over"):
        dist.PrefixStore("gloo", store).wait(["rank_1"], timedelta(seconds=100))
    store.set("rank_1", "there")
    dist.PrefixStore("ff/9/0", registry.client.get()).wait(["rank_1"], timedelta(seconds=1))


def test_first_use_reports_what_connecting_early_met() -> None:
    class Unreachable(Host):
        def connect_store(self, timeout_s: float = 300.0) -> dist.Store:
            self.connections += 1
            raise RuntimeError("no route to the store")

    host = Unreachable(0, 0, 0.0)
    client = StoreClient(host)
    client.connect_early()
    with pytest.raises(RuntimeError, match="no route"):
        client.get()
    assert host.connections >= 1


def test_store_answers_are_replayed_in_order() -> None:
    live = Journal(record=True)
    for value in (1, 4):
        live.store_result("add", "n", value)
    live.store_result("check", "k", False)
    live.store_result("check", "k", True)
    again = Journal(record=False, data=live.freeze())
    assert [again.stored("add", "n") for _ in range(3)] == [(True, 1), (True, 4), (False, None)]
    assert [again.stored("check", "k")[1] for _ in range(4)] == [False, True, True, True]
