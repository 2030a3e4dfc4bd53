"""The settings of a job as far as they are known before any process starts.

They come from --ff-config, from the launcher's options, and from what the script's arguments and environment name: a
DeepSpeed configuration, or Megatron's --ff-failover and --ff-* flags.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from ff_core.config import block, file, flags
from ff_core.config.schema import FailoverConfig
from ff_core.config.settings import Settings

#: Options that take a DeepSpeed configuration and nothing else. Any other argument may name one too, and is looked at.
_DEEPSPEED_OPTIONS = frozenset(("--deepspeed_config", "--deepspeed-config", "--deepscale_config"))
#: Where Accelerate finds the file that the script does not name.
_ACCELERATE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def find_settings(
    script_args: Sequence[str],
    ff_config: str | None,
    spares: int | None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """What is known of a job's settings before it starts.

    script_args: the script's arguments.  ff_config: the file of --ff-config.  spares: of --spares, wins over all
    others. Raises ConfigError naming file, field and value; also for a field with different values in two places.
    """
    settings = Settings()
    if ff_config is not None:
        config = FailoverConfig.from_dict(file.load_fields(ff_config), source=ff_config)
        settings = settings.joined(Settings.given(config, ff_config))
    blocks = [
        block.read_argument(value, option, option in _DEEPSPEED_OPTIONS) for option, value in _values(script_args)
    ]
    if _ACCELERATE in environ:
        blocks.append(block.read_argument(environ[_ACCELERATE], _ACCELERATE, False))
    found = [each for each in blocks if each is not None]
    protected = any(config.enabled for config, _ in found)
    for config, source in found:
        if config.enabled or not protected:  # else of another engine, which is not to be protected
            settings = settings.joined(Settings.given(config, source))
    flagged = flags.from_words(script_args)
    if flagged is not None:
        settings = settings.joined(Settings.given(flagged, f"the script's {flags.SWITCH}"))
    return settings if spares is None else settings.with_spares(spares)


def _values(script_args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of every argument that has a value, ours left out; option is "argument" for one by itself.

    Whether a word behind an option is the option's value is not known here: either way the word is looked at, once.
    """
    option = ""
    for word in script_args:
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            if not equals:
                continue
        else:
            value = word
        if option != flags.FILE:
            yield option or "argument", value
        option = ""
