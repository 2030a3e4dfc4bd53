"""The command line: torchrun's arguments mean what they mean there, or are refused with a reason."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import pytest

from ff_core.errors import ConfigError
from ff_core.launch import arguments
from ff_core.launch.arguments import RunPlan, build_parser, parse, split


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(text: str) -> RunPlan:
    return parse(text.split())


def test_defaults() -> None:
    made = plan("train.py")
    assert (made.nodes, made.nproc_per_node, made.emulated, made.spares, made.out_dir) == (1, 1, False, None, "")
    assert (made.machines.address, made.machines.port, made.machines.hosts) == ("127.0.0.1", 0, True)
    assert not made.machines.several and made.machines.rank is None
    assert made.entrypoint == ["train.py"] and not made.no_python and made.show_output and made.injections == []
    assert made.signals == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]
    assert plan("train.py").run_id != made.run_id


def test_shutdown_timeout_is_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan("train.py").shutdown_timeout_s == 30.0
    assert plan("--shutdown-timeout 7 train.py").shutdown_timeout_s == 7.0
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "90")
    assert plan("train.py").shutdown_timeout_s == 90.0
    for text in ("-1", "soon"):
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", text)
        with pytest.raises(ConfigError, match=f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={text}: allowed: a whole number"):
            plan("train.py")


def test_a_port_that_only_torch_names_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.12 torchrun's parser has 29500 for a default: two jobs on one machine would fight over it."""

    def older() -> argparse.ArgumentParser:
        parser = build_parser()
        parser.set_defaults(master_port=29500)
        return parser

    monkeypatch.setattr(arguments, "build_parser", older)
    assert plan("train.py").machines.port == 0
    assert plan("--master-port 29500 train.py").machines.port == 29500
    assert plan("--nnodes 2 --node-rank 1 --master-addr host0 train.py").machines.port == 29500


def test_ours() -> None:
    made = parse(["--nproc_per_node=4", "--emulate-nodes", "2", "--spares", "1", "--out-dir", "o", "--inject", "a b",
                  "--inject", "c", "--ff-config", "f.json", "train.py"])  # fmt: skip
    assert (made.nodes, made.nproc_per_node, made.emulated, made.spares) == (2, 2, True, 1)
    assert made.import_hooks and not plan("--no-import-hooks train.py").import_hooks
    assert made.injections == ["a b", "c"] and made.ff_config == "f.json" and made.out_dir == str(Path("o").resolve())


@pytest.mark.parametrize(
    "rest", ["--v --n 3", "--nproc-per-node 8", "-m x", "--spares", "--", "-- x", "--help", "--out-dir=x -t 3", "a -r"]
)
def test_the_scripts_arguments_are_left_alone(rest: str) -> None:
    made = plan(f"--nproc-per-node 2 train.py {rest}")
    assert made.entrypoint == ["train.py", *rest.split()]
    assert made.nproc_per_node == 2 and made.spares is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--nnodes 1 --standalone train.py --x", ["train.py", "--x"]),
        ("--nnodes=1 -m pack.train --x", ["-m", "pack.train", "--x"]),
        ("--max-restarts 2 --module pack -m", ["-m", "pack", "-m"]),
        ("--tee 0 -r 0 -t0 train.py -t", ["train.py", "-t"]),
        ("--run-path train.py 1", ["train.py", "1"]),
        ("--nproc_per 2 train.py", ["train.py"]),
        ("-- train.py --x", ["train.py", "--x"]),
        ("--no-python echo --x", ["echo", "--x"]),
        (f"--no-python {sys.executable} train.py -m", ["train.py", "-m"]),
        (f"--no-python {sys.executable} -m pack --x", ["-m", "pack", "--x"]),
    ],
)
def test_entrypoint(text: str, expected: list[str]) -> None:
    made = plan(text)
    assert made.entrypoint == expected and made.no_python == ("echo" in text)


def test_split_agrees_with_argparse() -> None:
    """Every option of the parser, given with a value if it takes one, ends at the script."""
    parser = build_parser()
    for option, action in parser._option_string_actions.items():
        if action.dest == "help":
            continue
        value = ["1"] if action.nargs != 0 else []
        assert split(parser, [option, *value, "s.py", option, "1"]) == ([option, *value, "s.py"], [option, "1"])
        if value and option.startswith("--"):
            assert split(parser, [f"{option}=1", "s.py", "x"]) == ([f"{option}=1", "s.py"], ["x"])


def test_environment_as_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PET_NPROC_PER_NODE", "3"), ("PET_SPARES", "2"), ("PET_MAX_RESTARTS", "4")):
        monkeypatch.setenv(name, value)
    made = plan("train.py")
    assert (made.nproc_per_node, made.spares, made.max_restarts) == (3, 2, 4)
    assert plan("--spares 0 train.py").spares == 0


def test_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan("--nnodes 2 --node-rank 1 --master-addr host0 --rdzv-id j7 train.py")
    nodes = made.machines
    assert (made.nodes, nodes.rank, nodes.hosts, nodes.address, nodes.port) == (2, 1, False, "host0", 29500)
    assert made.run_id == "j7" and (nodes.join_timeout_s, nodes.last_call_s) == (600.0, 30.0)
    nodes = plan("--nnodes 2:2 --node-rank 0 --rdzv-backend c10d --rdzv-endpoint host0:1234 train.py").machines
    assert (nodes.least, nodes.most, nodes.address, nodes.port, nodes.hosts) == (2, 2, "host0", 1234, True)
    monkeypatch.setenv("PET_NODE_RANK", "1")
    assert plan("--nnodes 2 --master-addr host0 train.py").machines.rank == 1


def test_the_same_command_on_every_node() -> None:
    """No --node-rank: whether the controller is here is found out from the endpoint."""
    made = plan("--nnodes 2:4 --rdzv-endpoint host0 --rdzv-conf join_timeout=60,last_call_timeout=2 train.py")
    nodes = made.machines
    assert (made.nodes, nodes.least, nodes.most, nodes.rank, nodes.hosts) == (2, 2, 4, None, None)
    assert (nodes.port, nodes.join_timeout_s, nodes.last_call_s) == (29500, 60.0, 2.0)
    nodes = plan("--nnodes 2 --standby --rdzv-endpoint host0:1 train.py").machines
    assert nodes.standby and nodes.hosts is False
    assert plan("--nnodes 1 --standby --rdzv-endpoint host0:1 train.py").machines.several
    assert plan("--nnodes 2 --rdzv-endpoint host0:1 --rdzv-conf is_host=true train.py").machines.hosts is True
    assert plan("--nnodes 2 --rdzv-endpoint host0:1 --rdzv-conf is_host=0 train.py").machines.hosts is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[::1]:77", ("::1", 77)), ("[::1]", ("::1", 29500)), ("host", ("host", 29500)), ("1.2.3.4:5", ("1.2.3.4", 5))],
)
def test_endpoints(text: str, expected: tuple[str, int]) -> None:
    nodes = plan(f"--nnodes 2 --rdzv-endpoint {text} train.py").machines
    assert (nodes.address, nodes.port) == expected


def test_output_options() -> None:
    assert plan("--redirects 3 --log-dir l train.py").show_output is False
    made = plan("--redirects 3 --tee 3 --log-dir l train.py")
    assert made.show_output and made.out_dir == str(Path("l").resolve())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gone.py", ["gone.py", "no such training script"]),
        ("-m nowhere_at_all.train", ["nowhere_at_all", "no module"]),
        ("--no-python nowhere_at_all", ["nowhere_at_all", "no such program"]),
        ("--no-python -m pack", ["--no-python", "--module"]),
        ("--no-python python -c pass", ["the interpreter is not named"]),
        ("--nnodes 4:1 train.py", ["--nnodes 4:1", "did you mean 1:4"]),
        ("--nnodes 1:4 --node-rank 0 --rdzv-endpoint h train.py", ["--nnodes 1:4", "leave --node-rank out"]),
        ("--nnodes 1:4 train.py", ["--nnodes 1:4", "--rdzv-endpoint", "scontrol show hostnames"]),
        ("--standby train.py", ["--standby", "--rdzv-endpoint"]),
        ("--standby --nnodes 2 --node-rank 1 --rdzv-endpoint h train.py", ["--standby", "leave --node-rank out"]),
        ("--standby --standalone train.py", ["--standalone", "--standby"]),
        ("--standby --rdzv-endpoint h --rdzv-conf is_host=1 train.py", ["is_host", "--standby"]),
        ("--nnodes 2 --node-rank 1 --rdzv-endpoint h --rdzv-conf is_host=1 train.py", ["is_host", "--node-rank 1"]),
        ("--nnodes 2 --rdzv-endpoint ::1 train.py", ["--rdzv-endpoint ::1", "[ADDRESS]:PORT"]),
        ("--nnodes 2 --rdzv-endpoint :29500 train.py", ["HOST is empty"]),
        ("--nnodes 2 --rdzv-endpoint h:0 train.py", ["port 0", "1 to 65535"]),
        ("--nnodes two train.py", ["--nnodes two"]),
        ("--nnodes 0 train.py", ["--nnodes 0", "at least 1"]),
        ("--nproc-per-node many train.py", ["--nproc-per-node many", "cpu, gpu"]),
        ("--nproc-per-node 0 train.py", ["--nproc-per-node 0"]),
        ("--nproc-per-node 4 --emulate-nodes 3 train.py", ["--emulate-nodes 3", "divides", "4"]),
        ("--nproc-per-node 4 --emulate-nodes 0 train.py", ["--emulate-nodes 0"]),
        ("--nnodes 2 --node-rank 0 --master-addr h --emulate-nodes 2 train.py", ["--emulate-nodes", "--nnodes"]),
        ("--spares -1 train.py", ["--spares -1"]),
        ("--max-restarts -1 train.py", ["--max-restarts -1"]),
        ("--nnodes 2 --node-rank 2 --master-addr h train.py", ["--node-rank 2", "0 to 1", "--standby"]),
        ("--nnodes 2 --node-rank 0 train.py", ["--rdzv-endpoint"]),
        ("--master-port 70000 train.py", ["70000", "65535"]),
        ("--rdzv-endpoint host:port train.py", ["host:port", "HOST:PORT"]),
        ("--rdzv-backend etcd train.py", ["--rdzv-backend etcd", "c10d"]),
        ("--rdzv-conf timeout=3 train.py", ["--rdzv-conf timeout=3", "join_timeout"]),
        ("--rdzv-conf join_timeout=soon train.py", ["--rdzv-conf join_timeout=soon", "seconds"]),
        ("--standalone --nnodes 2 train.py", ["--standalone", "one node"]),
        ("--role trainer train.py", ["--role trainer"]),
        ("--tee 1 --out-dir o train.py", ["--tee 1"]),
        ("--redirects 3 train.py", ["--redirects 3", "--out-dir"]),
        ("--out-dir a --log-dir b train.py", ["--out-dir a", "--log-dir b"]),
        ("--local-ranks-filter 0 train.py", ["--local-ranks-filter 0"]),
        ("--event-log-handler console train.py", ["--event-log-handler console"]),
        ("--logs-specs x train.py", ["--logs-specs x"]),
        ("--signals-to-handle SIGKILL train.py", ["SIGKILL"]),
        ("--signals-to-handle SIGNO train.py", ["SIGNO"]),
    ],
)
def test_refused(text: str, words: list[str]) -> None:
    option = text.split()[0].partition("=")[0]
    if option.startswith("--") and option not in build_parser()._option_string_actions:
        pytest.skip(f"torchrun of this torch has no {option}")
    with pytest.raises(ConfigError) as caught:
        plan(text)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--num_gpus 2 train.py --deepspeed", ["--num_gpus", "deepspeed", "--nproc-per-node N"]),
        ("--num_nodes 1 --num_gpus=2 --master_port 1 train.py", ["--num_nodes", "--nnodes N", "--num_gpus"]),
        ("--nproc-per-node 2 --include localhost:0,1 train.py", ["--include", "CUDA_VISIBLE_DEVICES"]),
        ("--hostfile hosts train.py", ["--hostfile", "on each node", "--rdzv-endpoint"]),
        ("-H hosts train.py", ["-H", "on each node"]),
        ("--num_processes 2 --mixed_precision bf16 train.py", ["accelerate", "ACCELERATE_MIXED_PRECISION"]),
        ("--machine_rank 0 --main_process_ip h train.py", ["--node-rank N", "--master-addr ADDRESS"]),
        ("--nproc-per-node 2 --ft-param-rank_heartbeat_timeout 600 train.py", ["--ft-param", "hang_timeout_s"]),
        ("--network-check --nproc-per-node 2 train.py", ["--network-check", "dlrover-run"]),
        ("-np 4 train.py", ["-np", "--nproc-per-node N"]),
        ("--use_env train.py", ["--use_env", "LOCAL_RANK"]),
        ("--nproc-per-nodes 2 train.py", ["--nproc-per-nodes", "did you mean --nproc-per-node"]),
        ("--learning-rate 2 train.py", ["--learning-rate", "after the script's name"]),
        ("--deepspeed train.py", ["--deepspeed", "after the script's name"]),
        ("accelerate launch train.py", ["accelerate is a launcher", "without accelerate"]),
        ("deepspeed --num_gpus 2 train.py", ["deepspeed is a launcher"]),
        ("--no-python torchrun train.py", ["torchrun is a launcher"]),
        ("-m torch.distributed.run train.py", ["torch.distributed.run is a launcher"]),
        ("python train.py", ["python", "script.py"]),
    ],
)
def test_other_launchers_lines_are_refused_with_what_to_write(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(text)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("text", ["", "--spares", "--spares one train.py"])
def test_refused_by_the_parser(text: str) -> None:
    with pytest.raises(SystemExit) as caught:
        plan(text)
    assert caught.value.code == 2
