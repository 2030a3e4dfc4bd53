"""The iterators over data loaders that a script gets.

The training loader's is followed by `ff_deepspeed.feed`. The places of others are saved with the script's variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ff_core.errors import FailoverError
from ff_core.state import rng
from ff_core.state.placed import Placed
from ff_core.state.source import Source, resolved


class Tracked(Placed):
    """An iterator over a data loader, given to the script instead of the loader's own. loader: the loader's number.

    ask: for the next item.  trains: whether it goes over the training loader.
    """

    def __init__(
        self,
        number: int,
        loader: Any,
        make: Callable[[], Iterator[Any]],
        ask: Callable[[Tracked], Any],
        trains: Callable[[Tracked], bool],
    ) -> None:
        super().__init__(f"loader{number}")
        self.loader = number
        self.source = Source(loader, make)
        self.starts: list[int] | None = None  # what enumerate() around it began with
        self.is_cycled = False  # itertools.cycle() keeps what it gives
        self._owner = loader
        self._ask, self._trains = ask, trains

    def __iter__(self) -> Tracked:
        return self

    def __next__(self) -> Any:
        return self._ask(self)

    def __len__(self) -> int:
        return len(self._owner)

    def position(self) -> dict[str, Any]:
        return {"loader": self.loader, "starts": self.starts or [], **self.source.position()}

    def goes_on_by_itself(self) -> bool:
        return self._trains(self)

    def count(self) -> int:
        return self.source.consumed

    def place(self) -> dict[str, Any]:
        return resolved(self.position())

    def go_to(self, place: dict[str, Any]) -> None:
        if place["loader"] != self.loader:
            raise FailoverError("it goes over another loader there")
        with rng.kept():
            self.source.seek(place)
