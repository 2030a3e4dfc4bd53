"""The command line of `fftrain run`: torchrun's own parser and a few options of ours, turned into a plan of the job.

Everything torchrun takes is taken. What cannot mean anything here (foreign rendezvous backends, per-rank output
filters) is refused with the reason instead of being ignored. What says where and how nodes meet is in `nodes`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ff_core.errors import ConfigError
from ff_core.launch import entrypoint, refusals
from ff_core.launch.nodes import Nodes, add_options, nodes_of

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"  # as torchrun's default


@dataclass(slots=True)
class RunPlan:
    """What the command line asks for, checked as far as one machine can.

    nodes, nproc_per_node: failure domains and ranks in each (`emulated`: all on this machine).
    machines: how many machines there are, and where they meet.  spares: None if not given.
    local_addr: address other nodes reach this one at; empty: found out.
    signals: numbers to stop on.  Other fields: as in JobSpec.
    """

    entrypoint: list[str]
    nodes: int
    nproc_per_node: int
    machines: Nodes
    emulated: bool
    no_python: bool
    import_hooks: bool
    local_addr: str
    run_id: str
    max_restarts: int
    spares: int | None
    out_dir: str
    ff_config: str | None
    show_output: bool
    signals: list[int]
    shutdown_timeout_s: float
    injections: list[str] = field(default_factory=list)


def build_parser() -> argparse.ArgumentParser:
    """torchrun's parser with our options added. Imports torch."""
    from torch.distributed.argparse_util import check_env, env
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.prog = "fftrain run"
    parser.description = (
        "Run a training script on every rank, as torchrun does, and keep the job going when a rank dies: survivors "
        "stay alive, a spare takes the dead rank's place."
    )
    ours = parser.add_argument_group("fftrain")
    ours.add_argument(
        "--spares", action=env, type=int, default=None,
        help="Waiting processes per node that can take a dead rank's place at once. Wins over the configuration.",
    )  # fmt: skip
    ours.add_argument(
        "--emulate-nodes", "--emulate_nodes", action=env, type=int, default=None, metavar="N",
        help="Split the local ranks into N failure domains that behave like N nodes.",
    )  # fmt: skip
    add_options(ours)
    ours.add_argument(
        "--inject", action="append", default=[], metavar="TEXT",
        help='A fault to inject, such as "kill rank=2 iteration=5 at=backward". May be repeated.',
    )  # fmt: skip
    ours.add_argument(
        "--ff-config", "--ff_config", action=env, default=None, metavar="FILE",
        help='JSON file with an "ff_failover" block, or just the contents of one.',
    )  # fmt: skip
    ours.add_argument(
        "--out-dir", "--out_dir", action=env, default=None, metavar="DIR",
        help="Where events and logs are written (for `fftrain report DIR`). Default: nothing is written.",
    )  # fmt: skip
    ours.add_argument(
        "--no-import-hooks", "--no_import_hooks", action=check_env,
        help="Leave Python's imports alone. Protected is then what calls FFTrainer itself: a DeepSpeed or Megatron-LM "
        "patched by `fftrain patch`, or a script that imports ff_deepspeed.",
    )  # fmt: skip
    if "--shutdown-timeout" not in parser._option_string_actions:  # torch before 2.13
        ours.add_argument(
            "--shutdown-timeout", "--shutdown_timeout", action=env, type=int, default=None, metavar="SECONDS",
            help="How long workers have between the signal that stops the job and SIGKILL. Default: 30.",
        )  # fmt: skip
    return parser


def parse(argv: Sequence[str]) -> RunPlan:
    """The plan for `argv`. Raises ConfigError; SystemExit for --help and for what the parser itself refuses."""
    parser = build_parser()
    ours, script_args = split(parser, argv)
    args = parser.parse_args(ours)
    args.training_script_args = script_args
    return _plan(args, given=_given(parser, ours))


def split(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(launcher's arguments with the script's name, script's arguments).

    argparse by itself looks for its own options in the script's arguments too, and refuses those that look like an
    abbreviation of several of its own (`--v`).
    """
    position = 0
    while position < len(argv):
        word = argv[position]
        if word == "--":
            return list(argv[: position + 2]), list(argv[position + 2 :])
        if not word.startswith("-") or word == "-":
            return list(argv[: position + 1]), list(argv[position + 1 :])
        attached = "=" in word or (not word.startswith("--") and len(word) > 2)
        option = word.split("=")[0] if word.startswith("--") else word[:2]
        known = _matches(parser, option)
        if not known:
            refusals.refuse_unknown(argv[position:], list(parser._option_string_actions))
        position += 2 if not attached and _action(parser, known[0]).nargs != 0 else 1
    return list(argv), []


def _matches(parser: argparse.ArgumentParser, option: str) -> list[str]:
    known = parser._option_string_actions
    if option in known:
        return [option]
    return [name for name in known if option.startswith("--") and name.startswith(option)]


def _action(parser: argparse.ArgumentParser, option: str) -> argparse.Action:
    return parser._option_string_actions[option]


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Names (argparse dest) of the options that are on the command line or in the environment (PET_*)."""
    given: set[str] = set()
    for word in argv[:-1]:
        if word.startswith("-"):
            names = _matches(parser, word.split("=")[0] if word.startswith("--") else word[:2])
            given.update(_action(parser, name).dest for name in names[:1])
    given.update(a.dest for a in parser._actions if f"PET_{a.dest.upper()}" in os.environ)
    return given


def _plan(args: argparse.Namespace, given: set[str]) -> RunPlan:
    refusals.refuse_unsupported(args)
    machines = nodes_of(args, given)
    nproc = _nproc(args.nproc_per_node)
    emulated = args.emulate_nodes is not None
    nodes = machines.least
    if emulated:
        nodes = args.emulate_nodes
        if machines.several:
            raise ConfigError(f"--emulate-nodes {nodes} with --nnodes {args.nnodes}: allowed: one or the other")
        if nodes < 1 or nproc % nodes:
            raise ConfigError(f"--emulate-nodes {nodes}: allowed: a number that divides --nproc-per-node {nproc}")
        nproc //= nodes
    for name, value in (("--spares", args.spares), ("--max-restarts", args.max_restarts)):
        if value is not None and value < 0:
            raise ConfigError(f"{name} {value}: allowed: a whole number of at least 0")
    run_id = args.rdzv_id
    if not machines.several and run_id == "none":
        import uuid

        run_id = str(uuid.uuid4())
    out_dir = args.out_dir or args.log_dir or ""
    if args.out_dir and args.log_dir and Path(args.out_dir).resolve() != Path(args.log_dir).resolve():
        raise ConfigError(
            f"--out-dir {args.out_dir} and --log-dir {args.log_dir}: allowed: one of them, logs go to DIR/logs"
        )
    entrypoint.without_interpreter(args)
    return RunPlan(
        entrypoint=entrypoint.words(args),
        nodes=nodes,
        nproc_per_node=nproc,
        machines=machines,
        emulated=emulated,
        no_python=args.no_python and not args.run_path,
        import_hooks=not args.no_import_hooks,
        local_addr=args.local_addr or "",
        run_id=run_id,
        max_restarts=args.max_restarts,
        spares=args.spares,
        out_dir=str(Path(out_dir).resolve()) if out_dir else "",
        ff_config=args.ff_config,
        show_output=_show_output(args, out_dir),
        signals=_signals(getattr(args, "signals_to_handle", _SIGNALS)),  # not every torch has it
        shutdown_timeout_s=_shutdown_timeout(args.shutdown_timeout),
        injections=list(args.inject),
    )


def _nproc(text: str) -> int:
    from torch.distributed.run import determine_local_world_size

    try:
        nproc = determine_local_world_size(text)
    except ValueError as error:
        raise ConfigError(f"--nproc-per-node {text}: {error}: allowed: a whole number, auto, cpu, gpu, xpu") from None
    if nproc < 1:
        raise ConfigError(f"--nproc-per-node {text}: allowed: at least 1")
    return int(nproc)


def _show_output(args: argparse.Namespace, out_dir: str) -> bool:
    for option, text in (("--redirects", args.redirects), ("--tee", args.tee)):
        if text not in ("0", "3"):
            raise ConfigError(f"{option} {text}: allowed: 0 or 3, for all ranks and both streams")
        if text == "3" and not out_dir:
            raise ConfigError(f"{option} 3: needs --out-dir DIR, where the log files go")
    return args.redirects == "0" or args.tee == "3"


def _signals(text: str) -> list[int]:
    import signal

    numbers = []
    for name in text.split(","):
        number = getattr(signal.Signals, name.strip(), None)
        if number is None or number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
            raise ConfigError(f"--signals-to-handle {text}: {name.strip()!r}: allowed: signals that can be handled")
        numbers.append(int(number))
    return numbers


def _shutdown_timeout(seconds: int | None) -> float:
    """As torchrun: the option, else TORCH_ELASTIC_SHUTDOWN_TIMEOUT, else 30 s."""
    source, text = "--shutdown-timeout ", str(seconds)
    if seconds is None:
        source, text = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=", os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")
    if not text.isdecimal():
        raise ConfigError(f"{source}{text}: allowed: a whole number of seconds, at least 0")
    return float(text)
