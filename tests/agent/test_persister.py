"""Two agents' parts of one version: files, the manifest, retention, and back into other agents' memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ff_core.agent import persister as persister_module
from ff_core.agent import version_files
from ff_core.agent.persister import Persister
from ff_core.agent.replica_store import ReplicaStore
from ff_core.contract import persisted
from ff_core.contract.job import JobSpec
from ff_core.contract.persisted import Manifest, Part
from ff_core.copy.arena import Arena, ArenaLayout
from ff_core.errors import FailoverError
from tests.copy.rig import Live, Rig

EPOCH = 2
SENT, LOCAL = 90_000, 20_000
JOB = JobSpec(["train.py"], 2, 1, "", 0)


def layout(rank: int, local: int = LOCAL) -> ArenaLayout:
    return ArenaLayout(rank, SENT, local, 4096, 4096, 8192)


class Node:
    """An agent's persister over memory of its own."""

    def __init__(self, number: int, directory: Path) -> None:
        self.store = ReplicaStore(number)
        self.said: list[dict[str, Any]] = []
        state: Any = SimpleNamespace(
            store=self.store, config=SimpleNamespace(persist_dir=str(directory)), send=self._send
        )
        self.persister = Persister(state)

    def _send(self, name: str, **fields: Any) -> None:
        self.said.append({"t": name, **fields})

    def has(self, rank: int, version: int, kind: str = "own") -> bytes:
        """A complete slot of this version; returns its content."""
        with Rig(SENT, LOCAL, holders=1, chunk=8192) as rig:
            rig.connect(EPOCH)
            content = rig.run(0, EPOCH, version, b"scalars")
            source = rig.own if kind == "own" else rig.holders[0]
            source_layout = source.layout
            arena = Arena.create(source_layout)
            rig.own.set_journal(b"journal")
            source.copy_slot(0, arena, 0)
            arena.set_journal(b"journal")
        (self.store.own if kind == "own" else self.store.replicas)[source_layout.rank] = arena
        return content

    def close(self) -> None:
        self.store.clear()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[[int], Node]]:
    with ExitStack() as stack:

        def make(number: int) -> Node:
            node = Node(number, tmp_path)
            stack.callback(node.close)
            return node

        yield make


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def manifest(folder: str, version: int, parts: dict[int, Part]) -> dict[str, Any]:
    return Manifest(folder, version, EPOCH, len(parts), parts, {rank: {} for rank in parts},
                    line=persisted.line_of(JOB)).to_wire()  # fmt: skip


def parts_of(said: list[dict[str, Any]]) -> dict[int, Part]:
    return {m["rank"]: Part(m["file"], m["size"]) for m in said if m["t"] == "persist_part"}


def test_one_version_of_a_rank_and_back(nodes: Callable[[int], Node], tmp_path: Path) -> None:
    node, other = nodes(0), nodes(1)
    content = node.has(3, 7)

    async def work() -> None:
        node.persister.on_persist("version-00000001-7", EPOCH, 7, {3: "own"}, False, False)
        await until(lambda: node.said)
        (part,) = node.said
        assert part["t"] == "persist_part" and not part["reason"]
        assert persisted.complete(tmp_path) == [], "without a manifest it counts for nothing"
        await node.persister.close()
        other.store.own[3] = Arena.create(layout(3))
        await other.persister.on_persist_load("version-00000001-7", 9, {3: [part["file"], part["size"]]})
        assert other.said == [{"t": "persist_loaded", "id": "version-00000001-7", "epoch": 9, "reasons": {}}]

    run(work())
    arena = other.store.own[3]
    assert arena.find(9, 7) == 0 and arena.journal() == b"journal" and arena.blob(0) == b"scalars"
    live = Live(SENT + LOCAL)
    arena.restore(0, live.segments())
    assert bytes(live.memory) == content


def test_a_replica_stands_in_for_a_lost_node(nodes: Callable[[int], Node]) -> None:
    node, other = nodes(0), nodes(1)
    content = node.has(3, 7, "replica")

    async def work() -> None:
        node.persister.on_persist("version-00000001-7", EPOCH, 7, {3: "replica"}, False, False)
        await until(lambda: node.said)
        await node.persister.close()
        other.store.own[3] = Arena.create(layout(3))
        part = parts_of(node.said)[3]
        await other.persister.on_persist_load("version-00000001-7", 9, {3: [part.file, part.size]})
        assert other.said[0]["reasons"] == {}

    run(work())
    assert not other.store.own[3].slot_info(0).full
    live = Live(SENT)
    other.store.own[3].restore(0, [live.segment(0, SENT)])
    assert bytes(live.memory) == content[:SENT]


def test_what_is_gone_or_overwritten_is_said(nodes: Callable[[int], Node], tmp_path: Path) -> None:
    node = nodes(0)
    node.has(3, 7)

    async def work() -> None:
        node.persister.on_persist("version-00000001-8", EPOCH, 8, {3: "own", 5: "own"}, False, False)
        await until(lambda: len(node.said) == 2)
        await node.persister.close()

    run(work())
    reasons = {message["rank"]: message["reason"] for message in node.said}
    assert "no complete slot of version 8" in reasons[3] and "not here any more" in reasons[5]
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_said(nodes: Callable[[int], Node], tmp_path: Path) -> None:
    node = nodes(0)
    node.has(3, 7)
    (tmp_path / "version-00000001-7").write_text("in the way")

    async def work() -> None:
        node.persister.on_persist("version-00000001-7", EPOCH, 7, {3: "own"}, False, False)
        await until(lambda: node.said)
        await node.persister.close()

    run(work())
    assert "File exists" in node.said[0]["reason"]
    assert node.store.own[3].slot_info(0).complete and not node.store.own[3].in_use


def test_a_damaged_file_leaves_the_slot_empty(nodes: Callable[[int], Node], tmp_path: Path) -> None:
    node, other = nodes(0), nodes(1)
    node.has(3, 7)

    async def work() -> None:
        node.persister.on_persist("version-00000001-7", EPOCH, 7, {3: "own"}, False, False)
        await until(lambda: node.said)
        await node.persister.close()
        part = parts_of(node.said)[3]
        path = tmp_path / "version-00000001-7" / part.file
        content = bytearray(path.read_bytes())
        content[-50_000] ^= 4  # in the payload, which comes last
        path.write_bytes(content)
        other.store.own[3] = Arena.create(layout(3))
        await other.persister.on_persist_load("version-00000001-7", 9, {3: [part.file, part.size]})

    run(work())
    assert "checksum of chunk" in other.said[0]["reasons"][3]
    assert not other.store.own[3].slot_info(0).complete


def test_arenas_are_not_freed_while_they_are_copied(
    nodes: Callable[[int], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes(0)
    node.has(3, 7)
    take = version_files.Copies.take

    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return take(*arguments)

    async def work() -> None:
        monkeypatch.setattr(version_files.Copies, "take", slow)
        node.persister.on_persist("version-00000001-7", EPOCH, 7, {3: "own"}, False, False)
        assert node.store.own[3].in_use
        await node.persister.quiet()
        node.store.clear()
        await until(lambda: node.said)
        await node.persister.close()

    run(work())
    assert node.said[0]["reason"] == ""


def test_the_job_ends_while_a_version_is_written(
    nodes: Callable[[int], Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half written stays without a name; the arenas can be freed at once."""
    node = nodes(0)
    node.has(3, 7)
    begun = asyncio.Event()
    wait = version_files.write

    async def work() -> None:
        loop = asyncio.get_running_loop()

        def slow(directory: str, folder: str, rank: int, copy: Any, go_on: Any) -> Any:
            loop.call_soon_threadsafe(begun.set)
            while not node.persister._stopping:
                pass
            return wait(directory, folder, rank, copy, go_on)

        monkeypatch.setattr(persister_module.version_files, "write", slow)
        node.persister.on_persist("version-00000001-7", EPOCH, 7, {3: "own"}, False, False)
        await begun.wait()
        await node.persister.quiet()
        assert not node.store.own[3].in_use
        node.store.clear()
        await node.persister.close()

    run(work())
    assert "the job is over" in node.said[0]["reason"]
    assert not list(tmp_path.glob("*/*"))


def test_an_agent_that_ends_by_a_signal_waits_for_what_it_writes(nodes: Callable[[int], Node], tmp_path: Path) -> None:
    node = nodes(0)
    node.has(3, 7)

    async def finished(seconds: float) -> bool:
        before = time.monotonic()
        await node.persister.finish(before + seconds)
        return time.monotonic() - before < seconds

    async def work() -> None:
        assert await finished(30), "nothing is being written"
        node.persister.on_persist("version-00000001-7", EPOCH, 7, {3: "own"}, False, True)
        assert not await finished(0.5), "the seal is still to come"
        assert len(node.said) == 1
        node.persister.on_persist_seal("version-00000001-7", manifest("version-00000001-7", 7, parts_of(node.said)), 2)
        assert await finished(30) and len(persisted.complete(tmp_path)) == 1
        node.persister.on_persist("version-00000002-7", EPOCH, 7, {3: "own"}, False, True)
        node.persister.on_persist_seal("version-00000002-7", {}, 0)  # it was given up
        assert await finished(30)
        await node.persister.close()

    run(work())


# ---- complete ------------------------------------------------------------------------------------------------------


def make_folder(directory: Path, serial: int, *, ranks: int = 1) -> dict[str, Any]:
    folder = persisted.folder_name(serial, serial * 10)
    (directory / folder).mkdir()
    parts = {}
    for rank in range(ranks):
        (directory / folder / persisted.rank_file(rank)).write_bytes(b"state")
        parts[rank] = Part(persisted.rank_file(rank), 5)
    return manifest(folder, serial * 10, parts)


def test_old_versions_go_when_a_new_one_is_complete(tmp_path: Path) -> None:
    for serial in (1, 2, 3):
        version_files.seal(str(tmp_path), make_folder(tmp_path, serial), 2, lambda: None)
    make_folder(tmp_path, 4)  # was never completed
    assert [path.name for path in persisted.complete(tmp_path)] == ["version-00000003-30", "version-00000002-20"]
    version_files.seal(str(tmp_path), make_folder(tmp_path, 5), 2, lambda: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["version-00000003-30", "version-00000005-50"]
    found = persisted.find(JobSpec(["train.py"], 1, 1, "", 0), str(tmp_path))
    assert [made.version for made in found.usable] == [50, 30]


def test_a_version_is_complete_when_the_other_nodes_files_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make_folder(tmp_path, 1, ranks=2)
    late = tmp_path / "version-00000001-10" / persisted.rank_file(1)
    late.unlink()
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            late.write_bytes(b"state")

    version_files.seal(str(tmp_path), wanted, 2, look)
    assert len(looks) == 3 and len(persisted.complete(tmp_path)) == 1

    monkeypatch.setattr(version_files, "_SEEN_S", 0.0)
    wanted = make_folder(tmp_path, 2, ranks=2)
    (tmp_path / "version-00000002-20" / persisted.rank_file(0)).write_bytes(b"torn")
    with pytest.raises(FailoverError, match="a file system that all nodes share"):
        version_files.seal(str(tmp_path), wanted, 2, lambda: None)
    assert len(persisted.complete(tmp_path)) == 1
