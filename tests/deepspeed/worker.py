"""Ranks of small DeepSpeed jobs under a session in memory; they run the cases they are given and print results as JSON.

Importing torch and DeepSpeed takes seconds, a case less: this process imports them once and forks the ranks of one job
after the other. It reads a line of JSON per job, {cases, world, port, outputs} (cases: a file, see `run_case`;
outputs: a file per rank for what it prints), and answers with the ranks' exit codes.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import traceback
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1")

import numpy as np
import torch

torch.set_num_threads(1)

import torch.distributed as dist  # noqa: E402
from fake_session import FakeSession, Interrupter  # noqa: E402
from said import Said  # noqa: E402
from small_model import Losing, Model, Noisy, digest, make_optimizer  # noqa: E402

from ff_core import comm  # noqa: E402
from tests.comm.harness import Host  # noqa: E402

interrupter = Interrupter()
interrupter.install()

import deepspeed  # noqa: E402
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402  (ZeRO-3 imports it when an engine is made: seconds)
import loops  # noqa: E402
import pipelines  # noqa: E402
import starts  # noqa: E402
from preload import preload, second_device  # noqa: E402

import ff_deepspeed  # noqa: E402
import scripts  # noqa: E402
from ff_core.worker import session  # noqa: E402
from ff_deepspeed import client, data_hooks, protection  # noqa: E402

rank = world = 0  # of this process, once it is a rank
DEADLINE_S = 240  # for a job that would otherwise hang


def make_engine(case: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    random.seed(3 + rank)
    np.random.seed(3 + rank)
    kind = Losing if case.get("unmodified") and not case.get("own_loss") else Model
    model = kind(case.get("frozen", True), "sometimes" in case)
    model.as_dict, model.counts = case.get("as_dict", False), case.get("counts", "")
    optimizer = make_optimizer(case, model)
    config = scripts.configuration(case)
    if case.get("optimizer") == "json":  # the configuration says which
        parameters = [p for p in model.parameters() if p.requires_grad]
        engine, *_ = deepspeed.initialize(model=model, model_parameters=parameters, config=config)
        torch.manual_seed(100 + rank)
        return engine
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
    with second_device(case.get("two_devices", False)):
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, lr_scheduler=scheduler, model_parameters=None, config=config
        )
    torch.manual_seed(100 + rank)
    return engine


def train(engine: Any, case: dict[str, Any], failover: FakeSession | None) -> dict[str, Any]:
    """`epochs` loops over a shuffled data set; returns losses by optimizer step, and what the last step left."""
    losses: dict[int, float] = {}
    data = Noisy(4 * case.get("gas", 1) * case.get("iterations", 6) + case.get("extra", 0))
    processes = {"num_workers": case.get("workers", 0), "persistent_workers": case.get("persistent", False)}
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, drop_last=True, **processes)
    evaluations: list[float] = []
    for _ in range(case.get("epochs", 1)):
        for batches in ff_deepspeed.batches(engine, loader, limit=case.get("limit")):
            step = engine.global_steps
            interrupter.begin(step + 1)
            with ff_deepspeed.iteration():
                total = torch.zeros(1)
                for batch in batches:
                    if "sometimes" in case:
                        engine.module.extra_factor = scripts.extra_factor(case["sometimes"], engine)
                    out = engine(batch.pop("x").to(next(engine.module.parameters()).dtype))
                    loss = torch.nn.functional.cross_entropy(out.float(), batch["y"])
                    loss = loss * scripts.weight(case.get("weight"), engine)
                    loss = loss * scripts.overflow(case.get("overflow"), engine, rank)
                    if case.get("skip") and scripts.agreed_to_skip(batch["y"], case["skip"]):
                        continue
                    if case.get("bare"):
                        scripts.swallowing(engine, loss)
                        total += loss.detach()
                        continue
                    engine.backward(loss)
                    engine.step()
                    total += loss.detach()
                if case.get("bare"):
                    with contextlib.suppress(BaseException):
                        torch.distributed.all_reduce(total)
                else:
                    torch.distributed.all_reduce(total)
                    interrupter.check()
                losses[step + 1 if case.get("bare") else engine.global_steps] = total.item()  # bare: maybe no step yet
            interrupter.running = False
        evaluations.append(float(torch.rand(1)))  # what happens between loops may draw random numbers
    return {
        "losses": losses,
        "digest": digest(engine),
        "evaluations": evaluations[-1:],
        "collectives": interrupter.count,
        "skipped": engine.skipped_steps,
    }


def train_unmodified(engine: Any, case: dict[str, Any]) -> dict[str, Any]:
    """The usual resume style: load_checkpoint, enumerate a loader, forward, backward, step, mean of the loss."""
    losses: dict[int, float] = {}
    seen: list[int] = []
    gas = case.get("gas", 1)
    data = Noisy(4 * gas * case.get("iterations", 6))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, num_workers=case.get("workers", 0))
    position = {"epoch": 0}
    if case.get("client_state", True):
        ff_deepspeed.client_state(lambda: {"epoch": position["epoch"], "step": engine.global_steps})
    step = 0
    if case.get("load", True):
        _, client = engine.load_checkpoint(case.get("directory", "nowhere"))
        position["epoch"], step = (client["epoch"], client["step"]) if client else (0, 0)
    dtype = next(engine.module.parameters()).dtype
    total = torch.zeros(1)
    for epoch in range(position["epoch"], case.get("epochs", 1)):
        position["epoch"] = epoch
        for number, batch in enumerate(loader):
            interrupter.begin(engine.global_steps + 1)
            x, y = batch.pop("x").to(dtype), batch["y"]
            if case.get("own_loss"):
                loss = torch.nn.functional.cross_entropy(engine(x).float(), y)
            else:
                loss = engine(x, y)
                loss = loss["loss"] if isinstance(loss, dict) else loss
            loss = loss * scripts.overflow(case["overflow"], engine, rank) if "overflow" in case else loss
            if case.get("in_place"):
                loss *= 2.0  # as Hugging Face's Trainer does
            loss.backward() if case.get("past the engine") else engine.backward(loss)
            scripts.edit_gradients(engine, case.get("gradients"))
            engine.step()
            total += loss.detach()
            if (number + 1) % gas == 0:
                step += 1
                torch.distributed.all_reduce(total)
                losses[engine.global_steps] = total.item()
                total = torch.zeros(1)
                seen.append(step)
            scripts.switch(engine, x, case.get("switches", False))
        interrupter.running = False
        metric = torch.rand(1)
        torch.distributed.all_reduce(metric)
    return {"losses": losses, "digest": digest(engine), "collectives": interrupter.count, "steps_seen": seen[-1:]}


def train_by_steps(engine: Any, case: dict[str, Any]) -> dict[str, Any]:
    """The other usual style: a number of steps, DeepSpeed's own loader begun again and again, checkpoints between."""
    from deepspeed.runtime.dataloader import RepeatingLoader

    data = Noisy(4 * world * 3)  # three steps to an epoch
    source = iter(RepeatingLoader(engine.deepspeed_io(data, num_local_io_workers=case.get("workers", 0))))
    losses: dict[int, float] = {}
    _, client_state = engine.load_checkpoint("nowhere")
    first = client_state["step"] if client_state else 0
    dtype = next(engine.module.parameters()).dtype
    for step in range(first, case["iterations"]):
        interrupter.begin(engine.global_steps + 1)
        batch = next(source)
        loss = engine(batch["x"].to(dtype), batch["y"])
        engine.backward(loss)
        engine.step()
        gathered: list[Any] = [None] * world
        torch.distributed.all_gather_object(gathered, loss.item())
        losses[step + 1] = sum(gathered)
        if (step + 1) % 2 == 0:
            engine.save_checkpoint(case["directory"], client_state={"step": step + 1})
    interrupter.running = False
    return {"losses": losses, "digest": digest(engine), "collectives": interrupter.count, "steps_seen": []}


def train_with_checkpoints(engine: Any, case: dict[str, Any], failover: FakeSession) -> dict[str, Any]:
    directory = pathlib.Path(case["persist"]["directory"])
    return train(engine, case, failover) | {
        "checkpoints": sorted(path.name for path in directory.iterdir()), "persisted_at": failover.persisted_at
    }  # fmt: skip


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """One training run.

    case: stage, dtype, gas, optimizer, ...; plan: [[iteration, collective], ...] to interrupt at; or `resume_from`, a
    file that an earlier case wrote with `save_at` (a version): then this rank begins as a newcomer.
    """
    saved = None
    if "resume_from" in case:
        saved = torch.load(f"{case['resume_from']}.{rank}", weights_only=True)
    failover = FakeSession(rank, world, interrupter, saved) if case.get("protected", True) else None
    session.set_current(failover)
    protection.guard.forget()
    data_hooks._numbers = itertools.count()  # every case stands for a script of its own
    client._function = None
    said = Said()
    if "shipped" in case:
        return starts.run(case, failover, interrupter)
    with scripts.other_version(case):
        engine = pipelines.make_engine(case) if "pipeline" in case else make_engine(case)
    interrupter.plan = [tuple(x) for x in case.get("plan", [])]
    if failover is not None:
        failover.may_restart = case.get("may_restart", True)
        failover.skip_reset = case.get("skip_reset", False)
        failover.behind = case.get("behind", 0)
        if "save_at" in case:
            seal = failover.seal

            def sealing() -> None:
                seal()
                if case["save_at"] <= failover.version <= case["save_at"] + 1:  # noted: what the next one was given
                    slot = {**failover.slots[case["save_at"]], "notes": bytes(failover.notes)}
                    torch.save(slot, f"{case['save_to']}.{rank}")

            failover.seal = sealing
    if how := case.get("misuse") or case.get("pipeline"):
        (pipelines.run if "pipeline" in case else scripts.misuse)(engine, how, make_engine)
        return {"error": "", "finished": failover.finished, "steps": engine.global_steps, "slots": len(failover.slots)}
    if "persist" in case:
        result = train_with_checkpoints(engine, case, failover)
    elif "loop" in case:
        result = loops.run(engine, case, interrupter)
    elif case.get("unmodified"):
        result = train_by_steps(engine, case) if "directory" in case else train_unmodified(engine, case)
    else:
        result = train(engine, case, failover)
    if case.get("unmodified") and failover is not None:
        protection.current().unmodified.end()
    if failover is not None:
        result |= {
            "recovered": failover.recovered,
            "finished": failover.finished,
            "points": sorted(set(failover.points)),
        }
        result["unfired"] = interrupter.plan
    if case.get("said"):
        result["said"] = said.lines
    engine.destroy()
    del engine
    gc.collect()
    return result


def main(cases: str) -> None:
    with open(cases, encoding="utf-8") as file:
        given = json.load(file)
    port = int(os.environ["MASTER_PORT"])
    server = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) if rank == 0 else None
    ff_deepspeed.hooks.install_in_script(comm.install(Host(port, 0, 0.0), solo=False))
    deepspeed.init_distributed(dist_backend="gloo")
    for case in given:
        try:
            result = run_case(case)
        except Exception as error:
            if not case.get("may_fail"):
                raise
            result = {"error": f"{type(error).__name__}: {error}"}
        print("RESULT " + json.dumps(result), flush=True)
    del server


def fork(number: int, job: dict[str, Any]) -> int:
    """Starts rank `number` of a job; its process id."""
    global rank, world
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(DEADLINE_S)
        output = os.open(job["outputs"][number], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        rank, world = number, job["world"]
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_PORT=str(job["port"]))
        main(job["cases"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    preload()
    gc.collect()
    gc.freeze()  # or each case would look through all that was imported, when it asks for its own garbage
    print("[]", flush=True)  # ready; before it libraries may have printed
    for line in sys.stdin:
        job = json.loads(line)
        pids = [fork(number, job) for number in range(job["world"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


serve()
