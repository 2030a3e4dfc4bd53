"""`fftrain run`: hosts torch store and controller or finds them, starts this machine's agents, waits for the job's
end."""

from __future__ import annotations

import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ff_core.config.find import find_settings
from ff_core.config.settings import Settings
from ff_core.contract import inject
from ff_core.contract.address import bracketed
from ff_core.contract.alike import launch_line
from ff_core.contract.env import hash_seed, set_default_threads
from ff_core.contract.job import LOST_CODE, JobSpec
from ff_core.controller.deputy import DeputyServer
from ff_core.controller.server import ControllerServer
from ff_core.errors import ConfigError
from ff_core.launch import folder, torch_store
from ff_core.launch.agents import Agents
from ff_core.launch.arguments import RunPlan, parse
from ff_core.launch.charge import Charge
from ff_core.launch.interfaces import give_gloo_an_interface
from ff_core.launch.meeting import find_again, meet
from ff_core.launch.rivals import refuse_second_node_0, watch_for_node_0

if TYPE_CHECKING:
    from torch.distributed import TCPStore

#: An agent that has not ended its workers so long after their last second is killed, its workers with it.
_LATE_S = 10.0
#: Agents end once the controller has: by then their workers are gone.
_AGENTS_END_S = 3.0
#: A launcher that has taken over looks so often, or nearly, at where the job began.
_TOLD_S, _LOOK_S = 5.0, 0.05


def main(argv: Sequence[str]) -> int:
    """Run a job. Returns its exit code: 0, or 1 if it failed or was stopped by a signal, as torchrun. Raises
    ConfigError."""
    plan = parse(argv)
    script_args = plan.entrypoint[2:] if plan.entrypoint[0] == "-m" else plan.entrypoint[1:]
    settings = find_settings(script_args, plan.ff_config, plan.spares)
    inject.parse_all(plan.injections, plan.nodes * plan.nproc_per_node)
    secret = _secret(plan, settings)
    if plan.out_dir:
        try:
            Path(plan.out_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out-dir {plan.out_dir}: {error.strerror}") from None
    _check_persist_dir(settings.config.persist_dir)
    set_default_threads(plan.nproc_per_node * (plan.nodes if plan.emulated else 1))
    machines = plan.machines
    if machines.hosts:
        if machines.several:
            refuse_second_node_0(machines.address, machines.port, secret)
        # Held in a variable: the store is served as long as the object lives.
        served, port = torch_store.host_store(machines.address, machines.port)
    else:
        may_host = machines.hosts is None
        found = meet(machines.address, machines.port, machines.join_timeout_s, may_host)
        if found.store is None:
            return join_job(plan, secret, launch_line(_job(plan, settings, machines.port)), (found.host, found.port))
        served, port = found.store, found.port
    return host_job(plan, settings, secret, served, port)


def host_job(plan: RunPlan, settings: Settings, secret: bytes, served: TCPStore, port: int) -> int:
    """Be the job's node 0, with its controller. served, port: the store, which this process serves. Returns the job's
    exit code."""
    machines = plan.machines
    job = _job(plan, settings, port)
    interface = plan.local_addr or torch_store.interface_of(machines.address)
    server = ControllerServer(job, secret, bracketed(interface))
    with _signals(plan.signals) as received, ExitStack() as holding:
        try:
            _, port = server.start()
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"cannot listen at {interface} (--local-addr, --rdzv-endpoint): {error}") from None
        # A server that listens everywhere is reached at the address that the nodes know already.
        address = (machines.address if interface in ("0.0.0.0", "::") else interface, port)
        torch_store.publish_controller(served, address)
        if machines.several and interface in ("0.0.0.0", "::"):
            # Perhaps this is not the machine that the address means.
            watch_for_node_0(machines.address, machines.port, secret, address, server)
        try:
            holding.enter_context(folder.held(settings.config.persist_dir, server.fail))
        except ConfigError:
            if not machines.several or not _is_told(server):
                server.give_up()
                server.wait()
                raise
        nodes = range(job.nodes) if job.emulated else [0]
        if machines.several:
            give_gloo_an_interface(plan.local_addr or torch_store.local_address(address))
        if server.elsewhere is None:
            # Elsewhere something that is no machine may answer that nobody listens: a NAT, a service.
            listens = address if machines.several and interface not in ("0.0.0.0", "::") else None
            code = start_job(job, server, secret, address, list(nodes), plan.local_addr, received, listens)
    if server.elsewhere is None:
        return code
    # Its node 0 was lost, which was here perhaps, and another launcher has taken over.
    host, port = server.elsewhere
    there = replace(machines, standby=True, rank=None, hosts=False, address=host, port=port)
    found = find_again(host, port, machines.join_timeout_s, lambda: False)
    return 1 if found is None else join_job(replace(plan, machines=there), secret, launch_line(job), found)


def start_job(
    job: JobSpec, server: ControllerServer, secret: bytes, address: tuple[str, int], nodes: list[int], local_addr: str,
    received: queue.SimpleQueue[int], deputy: tuple[str, int] | None = None,
) -> int:  # fmt: skip
    """Start the agents of `nodes` for a controller that listens at `address`, wait for the job's end, end the agents.

    deputy: where whoever connects in vain knows that this launcher is dead; None: nowhere.
    received: signals as they arrive. The first stops the job in order: workers get the same one. A second SIGINT
    (Ctrl-C) kills it; other signals do not, because clusters repeat theirs while the script still saves.
    The controller's summary (for a failed job with the traceback of the rank that failed first) is printed last, when
    no output can follow.
    """
    stopped_by: list[int] = []
    line = launch_line(job)

    def on_signal(signum: int) -> None:
        stopped_by.append(signum)
        if len(stopped_by) == 1:
            name, seconds = signal.Signals(signum).name, job.shutdown_timeout_s
            print(f"fftrain: {name}: stopping (workers have {seconds:g} s)", file=sys.stderr, flush=True)
            server.stop(signum)
        elif signum == signal.SIGINT:
            agents.send_signal(signal.SIGKILL)

    def on_exit(node: int, code: int) -> None:
        with suppress(RuntimeError):  # the controller's event loop is closed: the job is over
            server.agent_failed(node, f"its agent ended with exit code {code}")

    agents = Agents(on_exit)
    server.on_lost = agents.kill  # frozen perhaps: nothing of it may go on when it thaws
    _serve_signals(received, on_signal)
    try:
        for node in nodes:
            own = local_addr or torch_store.local_address(address)
            agents.start(node, address, secret, own, (), line, deputy=deputy)
    except OSError as error:
        on_exit(node, error.errno or 1)
        print(f"fftrain: cannot start the agent of node {node}: {error}", file=sys.stderr, flush=True)
    code, summary = server.wait()
    agents.join(_AGENTS_END_S)
    if stopped_by:
        return 1
    if server.elsewhere is None:
        _print_summary(code, summary)
    return code


def join_job(plan: RunPlan, secret: bytes, line: dict[str, str], address: tuple[str, int]) -> int:
    """On every node but 0: run this machine's agent, and be ready to take over from node 0. line: what was asked for
    here, which node 0 compares. address: the controller's. Returns the agent's exit code, which is the job's; the job's
    own if this launcher has taken over."""
    machines, node = plan.machines, plan.machines.rank if plan.machines.rank is not None else -1
    ended = threading.Event()
    stopped_by: list[int] = []
    charge = Charge(secret)
    stores: list[TCPStore] = []  # a store is served as long as the object lives

    def on_signal(signum: int) -> None:
        stopped_by.append(signum)
        if len(stopped_by) > 1:
            if signum == signal.SIGINT:
                agents.send_signal(signal.SIGKILL)
        elif deputy is not None and deputy.in_charge():
            deputy.stop(signum)
        else:
            agents.send_signal(signum)
            # An agent that does not end costs this node, not the job.
            killer = threading.Timer(plan.shutdown_timeout_s + _LATE_S, agents.send_signal, [signal.SIGKILL])
            killer.daemon = True
            killer.start()

    deputy: DeputyServer | None = None
    agents = Agents(lambda node, code: ended.set())
    with _signals(plan.signals) as received:
        _serve_signals(received, on_signal)
        place: tuple[str, int] | None = address
        while place is not None:
            own = plan.local_addr or torch_store.local_address(place)
            give_gloo_an_interface(own)
            store_here = partial(_store_at, own, machines.port, stores)
            deputy = DeputyServer(secret, bracketed(own), store_here, charge.begin)
            try:
                listens = deputy.start()
            except (OSError, RuntimeError) as error:
                raise ConfigError(f"cannot listen at {own} (--local-addr): {error}") from None
            agents.start(node, place, secret, own, plan.signals, line, plan.machines.standby, (own, listens[1]))
            ended.wait()
            ended.clear()
            if deputy.in_charge():
                code, summary = deputy.wait()
                agents.join(_AGENTS_END_S)
                charge.end()
                if deputy.elsewhere is None or stopped_by:
                    _print_summary(code, "" if stopped_by else summary)
                    return 1 if stopped_by else code
                machines = replace(machines, address=deputy.elsewhere[0], port=deputy.elsewhere[1])
            else:
                deputy.close()
                code = agents.join(_AGENTS_END_S)[node]
                if stopped_by or code != LOST_CODE:
                    return 1 if stopped_by else code if code >= 0 else 128 - code
            node = -1  # as another node: what it was is over
            place = find_again(machines.address, machines.port, machines.join_timeout_s, lambda: bool(stopped_by))
    return 1


def _is_told(server: ControllerServer) -> bool:
    """Whether the job of that persist_dir is this one, and goes on elsewhere."""
    deadline = time.monotonic() + _TOLD_S
    while server.elsewhere is None and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return server.elsewhere is not None


def _store_at(own: str, port: int, stores: list[TCPStore], controller: tuple[str, int]) -> tuple[str, int]:
    """Serve an empty torch store at `own`:`port`, or another port if that is taken: its (host, port)."""
    try:
        store, port = torch_store.host_store(own, port)
    except torch_store.PortTakenError:
        store, port = torch_store.host_store(own, 0)
    torch_store.publish_controller(store, controller)
    stores.append(store)
    return own, port


def _check_persist_dir(directory: str) -> None:
    """Versions can be written to `directory`, which is made if need be. Raises ConfigError."""
    if not directory:
        return
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(f"persist_dir {directory} cannot be written to: {error.strerror}") from None


def _secret(plan: RunPlan, settings: Settings) -> bytes:
    if settings.config.secret:
        return settings.config.secret.encode()
    if plan.machines.several:
        raise ConfigError(
            '"secret" is missing in the "ff_failover" block (or in the file of --ff-config): '
            "several nodes need the same one; allowed: at least 16 characters"
        )
    from ff_core.contract.auth import new_secret

    return new_secret().hex().encode()  # as text, which a script's own block can be compared with


def _job(plan: RunPlan, settings: Settings, port: int) -> JobSpec:
    return JobSpec(
        entrypoint=plan.entrypoint,
        nodes=plan.nodes,
        nproc_per_node=plan.nproc_per_node,
        master_addr=plan.machines.address,
        master_port=port,
        run_id=plan.run_id,
        emulated=plan.emulated,
        no_python=plan.no_python,
        import_hooks=plan.import_hooks,
        max_restarts=plan.max_restarts,
        out_dir=plan.out_dir,
        injections=plan.injections,
        config=settings.to_wire(),  # without the secret, which travels to agents by their standard input only
        show_output=plan.show_output,
        shutdown_timeout_s=plan.shutdown_timeout_s,
        hash_seed=hash_seed(),
        most_nodes=plan.machines.most,
        numbered=plan.machines.rank is not None,
        join_timeout_s=plan.machines.join_timeout_s,
        last_call_s=plan.machines.last_call_s,
    )


@contextmanager
def _signals(numbers: Sequence[int]) -> Iterator[queue.SimpleQueue[int]]:
    """Signals as queue entries: a handler may interrupt any line, so it does nothing but put (which is re-entrant)."""
    received: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = {number: signal.signal(number, lambda signum, frame: received.put(signum)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve_signals(received: queue.SimpleQueue[int], on_signal: Callable[[int], None]) -> None:
    def run() -> None:
        while True:
            on_signal(received.get())

    threading.Thread(target=run, name="ff-signals", daemon=True).start()


def _print_summary(code: int, summary: str) -> None:
    """The last words of a job that failed, in torchrun's frame."""
    if code == 0 or not summary:
        return
    lines = ("=" * 60, f"fftrain: the job FAILED (exit code {code})", "-" * 60, summary.rstrip(), "=" * 60)
    print("\n".join(lines), file=sys.stderr, flush=True)
