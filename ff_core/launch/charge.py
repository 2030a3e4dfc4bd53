"""What a launcher sees to beside its controller, once that has taken over from another launcher's."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ff_core.config.settings import Settings
from ff_core.contract.job import JobSpec
from ff_core.errors import ConfigError
from ff_core.launch import folder
from ff_core.launch.rivals import tell_who_returns

if TYPE_CHECKING:
    from ff_core.controller.deputy import DeputyServer

_LOOK_S = 0.5


class Charge:
    """persist_dir is this launcher's, and whoever comes to where the job began hears that it goes on."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._holding: threading.Thread | None = None

    def begin(self, server: DeputyServer, job: JobSpec, line: dict[str, str], endpoint: tuple[str, int],
              silent: Sequence[tuple[str, int]]) -> None:  # fmt: skip
        """`server` has the controller of `job` now. line: see JobState.  endpoint: where nodes that come find it.
        silent: launchers that may have had it, and may be heard again."""
        directory = Settings.from_wire(job.config).config.persist_dir

        def hold() -> None:
            # Whoever has it is the dead launcher, or one that would begin the job a second time.
            try:
                with folder.held(directory, server.fail, anyway=True):
                    while not server.done():
                        time.sleep(_LOOK_S)
            except ConfigError as error:  # versions are not written, and that is said elsewhere, too
                server.say(str(error))

        def watch() -> None:
            while not server.done():
                tell_who_returns(job, line, endpoint, self._secret, silent)
                time.sleep(_LOOK_S)

        self._holding = threading.Thread(target=hold, name="ff-charge")
        self._holding.start()
        threading.Thread(target=watch, name="ff-rivals", daemon=True).start()

    def end(self) -> None:
        """The job is over. Returns when nothing of it is left."""
        if self._holding is not None:
            self._holding.join()
