"""The part of the command line that is about machines: how many, where they meet, and which of them this one is."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ff_core.errors import ConfigError

_DEFAULT_PORT = 29500
_JOIN_S, _LAST_CALL_S = 600.0, 30.0  # torchrun's for c10d
_CONF = "join_timeout, last_call_timeout (seconds), is_host (true or false)"


@dataclass(frozen=True, slots=True)
class Nodes:
    """least, most: machines that play ranks when the job starts.  standby: this one does not.
    address, port: where they meet, torch's store is there; port 0: any free one (a single machine only).
    rank: this machine's number, None if it gets one.  hosts: whether the controller is here; None: if `address` is
    this machine's own.  join_timeout_s: how long the others are waited for.  last_call_s: how long, with `least` there,
    for more.
    """

    least: int
    most: int
    standby: bool
    address: str
    port: int
    rank: int | None
    hosts: bool | None
    join_timeout_s: float
    last_call_s: float

    @property
    def several(self) -> bool:
        return self.most > 1 or self.standby


def add_options(group: argparse._ArgumentGroup) -> None:
    """What torchrun does not have."""
    from torch.distributed.argparse_util import check_env

    group.add_argument(
        "--standby", action=check_env,
        help="This node plays no rank: it waits, with processes that can take a lost node's ranks at once.",
    )  # fmt: skip


def nodes_of(args: argparse.Namespace, given: set[str]) -> Nodes:
    """given: options (argparse dest) that the user gave. Raises ConfigError."""
    least, most = _range(args.nnodes)
    several = most > 1 or args.standby
    conf = _conf(args.rdzv_conf)
    address, port = _endpoint(args, several, given)
    rank = _rank(args, least, most, given)
    is_host = conf.get("is_host")
    if is_host is not None and (rank is not None or (args.standby and is_host)):
        other = "--standby" if args.standby else f"--node-rank {rank}"
        raise ConfigError(f"--rdzv-conf is_host with {other}: that says where the controller is; allowed: one of both")
    hosts: bool | None = bool(is_host) if is_host is not None else None
    if not several or rank == 0:
        hosts = True
    elif rank is not None or args.standby:
        hosts = False
    return Nodes(
        least=least,
        most=most,
        standby=args.standby,
        address=address,
        port=port,
        rank=rank,
        hosts=hosts,
        join_timeout_s=float(conf.get("join_timeout", _JOIN_S)),
        last_call_s=float(conf.get("last_call_timeout", _LAST_CALL_S)),
    )


def _range(text: str) -> tuple[int, int]:
    least, colon, most = text.partition(":")
    try:
        low, high = int(least), int(most if colon else least)
    except ValueError:
        raise ConfigError(f"--nnodes {text}: allowed: a number of nodes, or MIN:MAX") from None
    if low < 1:
        raise ConfigError(f"--nnodes {text}: allowed: at least 1")
    if high < low:
        raise ConfigError(f"--nnodes {text}: allowed: MIN:MAX with MIN not above MAX; did you mean {high}:{low}?")
    return low, high


def _endpoint(args: argparse.Namespace, several: bool, given: set[str]) -> tuple[str, int]:
    """Where the torch store listens. One machine and no port named: any free port, as newer versions of torchrun do."""
    address, port = args.master_addr, args.master_port if "master_port" in given else None
    if args.standalone:
        if several:
            raise ConfigError("--standalone with --standby: allowed: --standalone for one node alone")
        return "127.0.0.1", 0
    if args.rdzv_endpoint:
        address, port = host_and_port(args.rdzv_endpoint)
    if port is None:
        port = _DEFAULT_PORT if several else 0
    if not 0 <= port < 65536 or (port == 0 and several):
        raise ConfigError(f"port {port}: allowed: {1 if several else 0} to 65535")
    if several and not {"master_addr", "rdzv_endpoint"} & given:
        option = "--standby" if args.standby else f"--nnodes {args.nnodes}"
        raise ConfigError(
            f"{option} without --rdzv-endpoint: all nodes need the same HOST[:PORT], of the machine that is to have "
            "the controller. Under Slurm: $(scontrol show hostnames | head -n 1)"
        )
    return address.strip("[]"), port


def host_and_port(text: str) -> tuple[str, int]:
    """--rdzv-endpoint's HOST[:PORT]. Raises ConfigError."""
    if not text.startswith("[") and text.count(":") > 1:
        raise ConfigError(f"--rdzv-endpoint {text}: allowed: HOST:PORT, an IPv6 address as [ADDRESS]:PORT")
    host, _, number = text.rpartition(":") if not text.endswith("]") and ":" in text else (text, "", "")
    try:
        port = int(number or _DEFAULT_PORT)
    except ValueError:
        raise ConfigError(f"--rdzv-endpoint {text}: allowed: HOST:PORT") from None
    if not host:
        raise ConfigError(f"--rdzv-endpoint {text}: allowed: HOST:PORT; HOST is empty")
    return host, port


def _rank(args: argparse.Namespace, least: int, most: int, given: set[str]) -> int | None:
    if "node_rank" not in given:
        return None
    if args.standby:
        raise ConfigError(
            f"--standby with --node-rank {args.node_rank}: a standby gets its number when it comes; leave --node-rank "
            "out"
        )
    if least != most:
        raise ConfigError(
            f"--nnodes {args.nnodes} with --node-rank {args.node_rank}: with MIN:MAX nodes get their numbers when the "
            "job starts; leave --node-rank out"
        )
    if not 0 <= args.node_rank < least:
        raise ConfigError(
            f"--node-rank {args.node_rank}: allowed: 0 to {least - 1}, one per node; more nodes: --standby"
        )
    return int(args.node_rank)


def _conf(text: str) -> dict[str, float]:
    """--rdzv-conf's KEY=VALUE,..."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = (word.strip() for word in part.partition("="))
        try:
            if key == "is_host":
                found[key] = {"true": 1, "1": 1, "yes": 1, "false": 0, "0": 0, "no": 0}[value.lower()]
            elif key in ("join_timeout", "last_call_timeout") and float(value) >= 0:
                found[key] = float(value)
            else:
                raise ValueError
        except (KeyError, ValueError):
            raise ConfigError(f"--rdzv-conf {part}: allowed: KEY=VALUE,... with {_CONF}") from None
    return found
