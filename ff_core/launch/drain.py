"""`fftrain drain`: have a node leave a running job in order."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Sequence

import grpc

from ff_core.config.find import find_settings
from ff_core.contract import rpc
from ff_core.contract.address import endpoint
from ff_core.errors import ConfigError
from ff_core.launch.nodes import host_and_port
from ff_core.launch.rivals import controller_at

_ANSWER_S = 10.0


def main(argv: Sequence[str]) -> int:
    """Returns when the node has left: 0; or 1 if it stays, and says why. Raises ConfigError, ProtocolError."""
    parser = argparse.ArgumentParser(
        prog="fftrain drain",
        description="Take a node out of a running job: its ranks move to standbys or spares at the next iteration "
        "boundary, and its launcher ends with exit code 0. Returns when that is done.",
    )
    parser.add_argument("node", type=int, metavar="NODE", help="The node's number, which the job's log gives.")
    parser.add_argument(
        "--rdzv-endpoint", "--rdzv_endpoint", required=True, metavar="HOST[:PORT]", help="As for fftrain run."
    )
    parser.add_argument("--ff-config", "--ff_config", required=True, metavar="FILE", help="The file with the secret.")
    args = parser.parse_args(argv)
    secret = find_settings([], args.ff_config, None).config.secret
    if not secret:
        raise ConfigError(f'"secret" is missing in {args.ff_config}: without it the job listens to nobody')
    address, port = host_and_port(args.rdzv_endpoint)
    found = controller_at(address.strip("[]"), port)
    if found is None:
        raise ConfigError(f"no job at --rdzv-endpoint {args.rdzv_endpoint}; give what fftrain run was given")
    place = endpoint(*found)
    hello = {"node": -1, "host_id": "", "hostname": socket.gethostname(), "data_host": "", "data_port": 0}
    hello |= {"free_bytes": 0, "pid": os.getpid(), "drain": args.node}
    try:
        answer = asyncio.run(rpc.ask(place, secret.encode(), hello, _ANSWER_S))
    except OSError as error:
        raise ConfigError(str(error)) from None
    except grpc.RpcError as error:
        print(f"fftrain: the controller has gone before node {args.node} had left ({error})", file=sys.stderr)
        return 1
    if answer["reason"]:
        print(f"fftrain: node {args.node} stays: {answer['reason']}", file=sys.stderr)
        return 1
    print(f"fftrain: node {args.node} has left the job")
    return 0
