"""What a person sees while jobs run: progress bars in a terminal, a line now and then in a log."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_EVERY = 20  # steps between two lines in a log


class Screen:
    """Use as a context manager. `say` prints a line, `advance` moves the bar of the running job."""

    def __init__(self, console: Console | None = None) -> None:
        # Into a file or a pipe the lines must not be cut to the 80 columns that rich assumes.
        console = console or Console()
        self.console = console if console.is_terminal else Console(file=console.file, width=160)
        self._bars = Progress(
            TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), console=self.console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._said = 0

    def say(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style or None, highlight=False, markup=False, soft_wrap=True)

    def begin(self, name: str, steps: int) -> None:
        """A job starts."""
        self._said = 0
        self._task = self._bars.add_task(name, total=steps, note="starting")
        if self._bars.disable:
            self.say(f"{name}: starting")

    def advance(self, step: int, note: str) -> None:
        """The running job has finished `step`. note: the loss, say."""
        if self._task is None:
            return
        self._bars.update(self._task, completed=step, note=note)
        if self._bars.disable and step >= self._said + _EVERY:
            self._said = step - step % _EVERY
            self.say(f"  step {step}: {note}")

    def __enter__(self) -> Screen:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self._bars.stop()
