"""`fftrain`: run a protected job, take a node out of one, report on one, or patch a framework.

    fftrain run --nproc-per-node 4 --spares 1 train.py --deepspeed --deepspeed_config ds.json
    fftrain report OUT_DIR
    fftrain drain 2 --rdzv-endpoint node0:29500 --ff-config ff.json
    fftrain patch deepspeed PATH
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Sequence

from ff_core.errors import ConfigError, FailoverError

_USAGE = """usage: fftrain run [options] script.py [script's arguments]
       fftrain drain [options] NODE
       fftrain report [options] OUT_DIR
       fftrain patch [options] deepspeed|megatron PATH
       fftrain --version

run     train, as torchrun does, and go on when a rank dies (fftrain run --help)
drain   take a node out of a running job without losing an iteration (fftrain drain --help)
report  a table and an HTML page about the failovers of a run (fftrain report --help)
patch   have a framework call FFTrainer itself, for runs with --no-import-hooks (fftrain patch --help)
"""

_COMMANDS = ("run", "drain", "report", "patch")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code (2: the command line or a configuration is wrong)."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else ""
    if command in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    if command == "--version":
        from ff_core import __version__

        print(f"fftrain {__version__}")
        return 0
    if command not in _COMMANDS:
        said = f"{command!r} is not a command" if command else "a command is needed"
        print(f"{_USAGE}\nfftrain: error: {said}; allowed: {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    try:
        if command == "report":
            from ff_core.observe import report

            return report.main(words[1:])
        if command == "patch":
            from ff_core.patching import command as patch

            return patch.main(words[1:])
        if importlib.util.find_spec("torch") is None:
            raise ConfigError("PyTorch is not installed in this environment: pip install torch (2.9 or newer)")
        from ff_core.launch import drain, run

        if command == "drain":
            return drain.main(words[1:])
        return run.main(words[1:])
    except FailoverError as error:
        print(f"fftrain {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before a job's own signal handling begins
        return 128 + signal.SIGINT
    except SystemExit as error:  # argparse: --help, or a usage error that it has printed
        return error.code if isinstance(error.code, int) else 2


if __name__ == "__main__":
    sys.exit(main())
