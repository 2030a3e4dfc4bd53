"""Weights from the masters: only those who lack them get them, from the parts that all others hold."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.distributed as dist

from ff_deepspeed import rebuild
from tests.comm.harness import Worker, run

WORLD, PART = 4, 5
GROUPS = [[0, 1, 2, 3], [0, 1, 2, 3]]  # one per parameter group, as ZeRO has them
LOST = float("nan")


def weight(group: int, part: int) -> torch.Tensor:
    return torch.arange(PART, dtype=torch.bfloat16) + 10 * part + 100 * group


class Zero:
    """What `rebuild` reads of a ZeRO optimizer whose rank has the weights, or has only its own masters."""

    def __init__(self, rank: int, whole: bool) -> None:
        self.real_dp_process_group = [dist.new_group(ranks) for ranks in GROUPS]
        self.parallel_partitioned_bit16_groups = [
            [weight(group, part) if whole else torch.full((PART,), LOST, dtype=torch.bfloat16) for part in range(WORLD)]
            for group in range(len(GROUPS))
        ]
        self.single_partition_of_fp32_groups = [weight(group, rank).float() for group in range(len(GROUPS))]
        self.gathered_by_all = 0

    def update_lp_params(self) -> None:
        self.gathered_by_all += 1


#: Ranks that got their masters from slots and lack the weights.
RESTORED = ([2], [0], [1, 3], [0, 1, 3])


def work(worker: Worker) -> list[tuple[bool, bool, int]]:
    """One job for all cases: each process imports DeepSpeed."""
    dist.init_process_group("gloo")
    return [rebuilt(worker, restored) for restored in RESTORED]


def rebuilt(worker: Worker, restored: list[int]) -> tuple[bool, bool, int]:
    optimizer = Zero(worker.rank, whole=worker.rank not in restored)
    touched = [part._version for parts in optimizer.parallel_partitioned_bit16_groups for part in parts]
    rebuild.weights_from_masters(SimpleNamespace(optimizer=optimizer), restored)
    right = all(
        torch.equal(part, weight(group, index))
        for group, parts in enumerate(optimizer.parallel_partitioned_bit16_groups)
        for index, part in enumerate(parts)
    )
    same = touched == [part._version for parts in optimizer.parallel_partitioned_bit16_groups for part in parts]
    dist.barrier()
    return right, same, optimizer.gathered_by_all


def test_weights_from_masters() -> None:
    results = run(WORLD, work, swappable=False)
    assert len(results) == WORLD
    for rank, cases in enumerate(results):
        for restored, (right, same, gathered_by_all) in zip(RESTORED, cases, strict=True):
            if len(restored) > WORLD // 2:
                assert gathered_by_all == 1, "most have to gather: then all do, as after a step"
            else:
                assert right and gathered_by_all == 0, restored
                assert same == (rank not in restored), "whoever kept its weights is left alone"
