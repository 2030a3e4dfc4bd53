"""Libraries whose training loop is their own: what such a loop keeps beside the engine, how a replacement enters.

A module for each library. It is imported when the library's own module is, and replaces methods there once per process.
An engine that is not protected runs the library's own code.
"""

from __future__ import annotations

from ff_core.worker.hooks import when_imported

_LIBRARIES = {
    "deepspeed.runtime.sequence_parallel.ulysses_sp": "ff_deepspeed.trainers.ulysses:install",
    "transformers.modeling_utils": "ff_deepspeed.trainers.checkpointing:install",
    "transformers.trainer": "ff_deepspeed.trainers.huggingface:install",
    "accelerate.accelerator": "ff_deepspeed.trainers.accelerate:install",
    "pytorch_lightning.strategies.deepspeed": "ff_deepspeed.trainers.lightning:install",
    "lightning.pytorch.strategies.deepspeed": "ff_deepspeed.trainers.lightning:install_in_lightning",
}


def install() -> None:
    """Wait for the libraries. Once per process."""
    for module, function in _LIBRARIES.items():
        when_imported(module, function)
