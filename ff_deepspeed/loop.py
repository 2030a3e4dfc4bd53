"""The exact loop: iterations that are handed out again after a failure.

    for batches in ff_deepspeed.batches(engine, loader):     # one item = the micro-batches of one iteration
        with ff_deepspeed.iteration():                       # what must happen once per iteration belongs inside
            for batch in batches:
                loss = engine(batch)
                engine.backward(loss)
                engine.step()

A failure anywhere inside the `with` voids the iteration: the rank recovers and the loop's next item is iteration
v*+1, v* being the version that all ranks agreed on. A replacement runs the same script; its loop begins with that
same item. An iteration is complete ("sealed") when the loop asks for the next item.

An item may pass without an optimizer step, as where all ranks agree to skip a batch. It makes no version: it belongs to
the iteration of the next step, and is handed out again together with it.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from ff_core.errors import FailoverError, FailoverInterrupt, UnsupportedError, interrupted
from ff_core.state import covered, rng, variables
from ff_core.worker.exact_loop import Body, ExactLoop
from ff_core.worker.items import Items
from ff_deepspeed import kept_processes, loop_words, scalars
from ff_deepspeed.loader import DROPPED, ReplayableLoader

if TYPE_CHECKING:
    from ff_deepspeed.engine import ProtectedEngine

log = logging.getLogger("ff_deepspeed")


class Loop(ExactLoop[list[Any]]):
    """All batches() calls of one protected engine. Their count is part of the position in the data.

    check_first: raises where batches() comes too late.
    """

    repeats_script = True

    def __init__(self, protection: ProtectedEngine, check_first: Callable[[], None]) -> None:
        super().__init__(protection.session, loop_words.OF_LOOP, log)
        self._p = protection
        self._check_first = check_first
        self.used = False  # batches() has been called: the script is not an unmodified one
        self._calls = 0
        self._call = 0  # the call that feeds the engine now
        self._source: ReplayableLoader | None = None
        self._ends: dict[int, int] = {}  # version -> number of the last item behind it
        self._restored: dict[str, Any] | None = None  # position of a restored version, until it is taken up

    def position(self) -> dict[str, Any]:
        assert self._source is not None
        place = self._source.position(self._ends.get(self.session.version, -1))
        return {"call": self._call, "left": self._left_at(), "processes": kept_processes.positions(None), **place}

    def client_state(self) -> dict[str, Any]:
        return self._p.client.save()

    def restored(self, saved: dict[str, Any]) -> None:
        self._p.client.load(saved["client"])
        self._restored = saved["data"]
        if self._source is not None:
            self._source.keep_apart()
        kept_processes.go_back(saved["data"]["processes"])

    def items(self, loader: Iterable[Any], limit: int | None) -> Items[list[Any]]:
        """batches(): one iteration's micro-batches at a time."""
        return Items(lambda items: self._run(loader, limit, items))

    def _run(
        self, loader: Iterable[Any], limit: int | None, items: weakref.ReferenceType[Items[list[Any]]]
    ) -> Iterator[list[Any]]:  # fmt: skip
        self._check_first()
        self.used = True
        self._asked(items)
        call, self._calls = self._calls, self._calls + 1
        if not isinstance(loader, DataLoader):  # its own parts go on by themselves: see variables.fetched()
            covered.feeds(loader)
        source = ReplayableLoader(loader, self._p.engine.gradient_accumulation_steps(), limit)
        if self.session.is_newcomer:
            position = self.session.saved_scalars()["data"]
            if position["call"] > call:
                self._p.pass_over()
                log.info("batches() call %d was over before this process took over its rank: empty here", call + 1)
                return
            self._not_left(position)
            source.seek(position)  # before joining: nobody should wait for it
        version = item = self._begin(call, source)  # items are numbered like versions, until one makes none
        self._count(source.items)
        self._ends = {version: item}
        while True:
            batches, interrupt = interrupted(partial(self._fetch, source, item + 1))
            if interrupt is None and batches is None:
                return
            if interrupt is None and batches is not None:
                self._body = Body(version, item + 1, version + 1, scalars.counters(self._p.engine))
                try:
                    yield batches
                except GeneratorExit:
                    self._leave(self._body)
                    raise
                interrupt = self._end(self._body)
                if interrupt is None:
                    version, item = self.session.version, item + 1
                    self._settle(source, version, item)
            if interrupt is not None:
                handed = item if batches is None else item + 1
                version = self._recover(interrupt, source)
                item = self._ends[version]
                self._count(item - handed)

    def _settle(self, source: ReplayableLoader, version: int, item: int) -> None:
        oldest = self.session.oldest_needed
        for old in [old for old in self._ends if old < oldest]:
            del self._ends[old]
        source.settle(item, self._ends.get(oldest, -1))

    def _fetch(self, source: ReplayableLoader, item: int) -> list[Any] | None:
        """The item's micro-batches. None: the data is at its end, and every rank is through."""
        steps = self._p.engine.gradient_accumulation_steps()
        if steps != source.group:
            raise self.fail(UnsupportedError(loop_words.RESIZED.format(before=source.group, now=steps)))
        batches = source.fetch(item)
        if self._p.started:
            variables.of_process.fetched()
        if batches is None:
            self.session.finish(again=True)
            source.release()
        return batches

    def fail(self, error: FailoverError) -> FailoverError:
        return self._p.fail(error)

    def void(self, body: Body, epoch: int) -> None:
        """No code must see counters of a step that did not count."""
        super().void(body, epoch)
        scalars.set_counters(self._p.engine, body.kept)

    def check_boundary(self, is_boundary: bool) -> None:
        """The script says whether a micro-batch is the last of its step. Raises UnsupportedError if it counts them."""
        steps = self._p.engine.gradient_accumulation_steps()
        if steps > 1 or not is_boundary:
            raise self.fail(UnsupportedError(loop_words.BOUNDARY.format(steps=steps)))

    def _begin(self, call: int, source: ReplayableLoader) -> int:
        """Make `source` what feeds the engine. Returns the version that its first item follows."""
        self._call, self._source, self._left = call, source, False
        if self._p.started:
            source.begin()  # its processes and random states belong to the version that marks the beginning
            return self._mark()
        version = self._p.start()
        if self._restored is not None:
            # A newcomer. It may have to go further than it has looked: another failure can move the version.
            position = self._take_restored()
            with rng.kept():
                source.seek(position)
        return version

    def _mark(self) -> int:
        """A version of its own for "this call begins".

        What the script does between two calls (evaluation, a new shuffle) is not repeated after a failure, so its
        effects on counters and random generators must be saved: a newcomer passes over it without taking part.
        """
        _, epoch = interrupted(self.session.mark)
        if epoch is not None:
            raise self.fail(FailoverError(loop_words.OUTSIDE))
        return self.session.version

    def _end(self, body: Body) -> int | None:
        """The loop asks for more: seal. Returns the epoch of a halt, if there was one."""
        if not body.entered:
            raise FailoverError(
                "the body of the batches() loop did not enter `with ff_deepspeed.iteration():`: nothing could be "
                "repeated after a failure. Put the training of the iteration inside it"
            )
        if body.interrupt is not None:
            return body.interrupt
        if self.session.version == body.version:
            return None  # nothing to seal: what this item did is done again from the version before it
        if self._p.steps_since_version():
            raise FailoverError(
                f"iteration {body.version + 1} went on with engine.step() after its optimizer step: one item of "
                f"batches() holds the micro-batches of one step (gradient_accumulation_steps = "
                f"{self._p.engine.gradient_accumulation_steps()}); call engine(...), engine.backward(...) and "
                "engine.step() once for each of them, and skip all of them or none"
            )
        self._ends[self.session.version] = body.item
        try:
            self._p.persist()
            self.session.seal()
        except FailoverInterrupt as caught:
            return caught.epoch
        return None

    def _leave(self, body: Body) -> None:
        """See ExactLoop."""
        super()._leave(body)
        if body.finished and self._source is not None:
            self._source.release()

    def _recover(self, epoch: int, source: ReplayableLoader) -> int:
        version = self.session.recover(FailoverInterrupt(epoch))
        self._take_restored()
        self.session.given_again()
        if version not in self._ends or not source.can_return_to(self._ends[version]):
            raise self.fail(FailoverError(f"the batches that followed version {version} are not kept any more"))
        return version

    def _take_restored(self) -> dict[str, Any]:
        position, self._restored = self._restored, None
        assert position is not None
        self._not_left(position)
        if position["call"] != self._call:
            raise self.fail(FailoverError(loop_words.OUTSIDE))
        return position


def plain(engine: Any, loader: Iterable[Any], limit: int | None) -> Iterator[list[Any]]:
    """batches() of an engine that is not protected: the same items, no copies, no waiting."""
    group = engine.gradient_accumulation_steps()
    source = iter(loader)
    for _ in itertools.count() if limit is None else range(limit):
        batches = list(itertools.islice(source, group))
        if len(batches) < group:
            if batches:
                log.info(DROPPED, len(batches), group)
            return
        yield batches
