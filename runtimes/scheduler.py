"""The scheduler: sequences of all requests share every step; they join and leave between two."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from graftline.errors import BackendError, RequestError
from graftline.runtimes.counters import EngineStats, Totals
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.joint_step import JointStep
from graftline.runtimes.lane import Lane
from graftline.runtimes.prefix_cache import CHUNK, PrefixCache
from graftline.runtimes.prompt_reader import PromptReader
from graftline.runtimes.schedules.step import follow_courses, story_of
from graftline.runtimes.session import Scores, Session
from graftline.runtimes.step_story import StepStory
from graftline.runtimes.task import Task, raise_first
from graftline.runtimes.trees.packing import pack

R = TypeVar("R")
SEATS = 32
"""Most sequences that decode together, unless the engine is loaded with another number."""
INTERRUPTED = "the step was interrupted; ask again"
FORKED = "this process was forked after the bundle was loaded; load it in this process"
REENTERED = "this call came from within a step of the same engine; make it after the step"


class Scheduler:
    """Decodes on one session. Any thread may submit, and any that waits makes steps for all: no
    thread is needed besides the callers', and no lock is held between two steps."""

    def __init__(
        self, session: Session, seats: int = SEATS, prefixes: PrefixCache | None = None
    ) -> None:
        self.session = session
        self.prompts = PromptReader(session, prefixes)
        self.seats = min(seats, session.most_sequences or seats)
        self._lock = threading.Lock()
        self._stepping: int | None = None
        self._waiting: deque[tuple[Decoding, Lane] | Task] = deque()
        self._seated: list[Decoding] = []
        self._lanes: list[Lane] = []
        self._reading: tuple[Decoding, Lane] | None = None
        self._task: Task | None = None
        self._fresh = False
        self.explain: Callable[[Decoding, StepStory], None] | None = None
        """Is told of every step of every sequence, within the step."""
        self._totals = Totals()
        self._process = os.getpid()
        self._thread = ThreadPoolExecutor(1, "graftline-steps")  # started by the first coroutine

    def submit(self, one: Decoding, lane: Lane) -> None:
        """Let a sequence take part as soon as there is a seat; first come, first served."""
        self._waiting.append((one, lane))

    def run_alone(self, task: Task) -> None:
        """Let work begin once all sequences that were submitted before it have ended."""
        self._waiting.append(task)

    def step(self) -> bool:
        """One step for all; False where there is nothing to do.

        What goes wrong is kept with the sequences that it ends; only an interrupt is raised here.
        """
        self._check()
        with self._lock:
            return self._guarded()

    def wait(self, enough: Callable[[], bool]) -> None:
        """Make steps until it is enough."""
        while not self._advance(enough):
            pass

    async def wait_elsewhere(self, enough: Callable[[], bool]) -> None:
        """The same on a thread of the scheduler's own, for coroutines: all of them share it."""
        loop = asyncio.get_running_loop()
        while not await loop.run_in_executor(self._thread, self._advance, enough):
            pass

    def _advance(self, enough: Callable[[], bool]) -> bool:
        """Whether it is enough, which is asked while nobody makes a step: within one, what ends is
        not yet told in full. If not, one step."""
        self._check()
        with self._lock:
            if enough():
                return True
            self._guarded()
            return False

    def _guarded(self) -> bool:
        """A step, and what to do when it fails."""
        self._stepping = threading.get_ident()
        try:
            return self._step()
        except Exception as error:
            self._fail(error)
            return True
        except BaseException:  # an interrupt: caches may be half written
            self._fail(BackendError(INTERRUPTED))
            raise
        finally:
            self._stepping = None

    def finish(self, ones: Sequence[Decoding | Task]) -> None:
        """Make steps until all have ended. Raises what ended one of them."""
        self.wait(lambda: all(one.done for one in ones))
        raise_first(ones)

    def between(self, work: Callable[[], R]) -> R:
        """Do something between two steps."""
        self._check()
        with self._lock:
            return work()

    def idle(self, work: Callable[[], R]) -> R:
        """Do something that needs the engine and is no decoding, measuring say: when all that were
        submitted before have ended."""
        found: list[R] = []

        def once() -> Iterator[None]:
            found.append(work())
            yield from ()

        task = Task(once)
        self.run_alone(task)
        self.finish([task])
        return found[0]

    def stats(self) -> EngineStats:
        """Counts of all requests so far, taken between two steps."""
        return self.between(self._stats)

    def _stats(self) -> EngineStats:
        task = [] if self._task is None else list(self._task.sequences)
        going = [one for one in [*self._seated, *task] if not one.done]
        queue = [e.sequences if isinstance(e, Task) else [e[0]] for e in list(self._waiting)]
        totals = self._totals.with_more(one for one in self._seated if one.done)
        prefixes = self.prompts.prefixes
        return EngineStats(
            len(going), sum(len(ones) for ones in queue), dict(totals.finished),
            totals.prompt_tokens, totals.generation_tokens,
            0 if prefixes is None else totals.prompt_tokens, totals.reused,
            0 if prefixes is None else prefixes.nbytes, totals.drafts,
        )  # fmt: skip

    def _check(self) -> None:
        if self._stepping == threading.get_ident():
            raise RequestError(REENTERED)
        if self._process != os.getpid():  # the engine's threads are not here
            raise RequestError(FORKED)

    def _step(self) -> bool:
        self._sweep()
        if self._task is None and not self._seated and self._waiting:
            head = self._waiting[0]
            if isinstance(head, Task):
                self._task = head
                self._waiting.popleft()
        if self._task is not None:
            self._work(self._task)
            return True
        if not self._fresh:
            self.session.reset(0)
            self._fresh = True
        running = len(self._seated) - (self._reading is not None)
        more = len(self._waiting) + (self._reading is not None)
        read = self._read()
        if running and (not read or more <= running):
            self._decode()
            return True
        return read or running > 0

    def _work(self, task: Task) -> None:
        """A step of a task; the session is empty again when it ends."""
        self._fresh = False
        try:
            task.step()
        except BaseException as error:
            ended = error if isinstance(error, Exception) else BackendError(INTERRUPTED)
            task.error, task.done = ended, True
            for one in task.sequences:
                if not one.done:
                    one.error = ended
            if ended is not error:
                raise
        finally:
            if task.done:
                self._task = None
                self._totals.add(task.sequences)
                for one in task.sequences:
                    one.release()

    def _sweep(self) -> None:
        """Let go of the sequences that have ended, those that wait too."""
        for one in [one for one in self._seated if one.check()]:
            self._unseat(one)
        for entry in list(self._waiting):  # other threads submit meanwhile
            if not isinstance(entry, Task) and entry[0].check():
                self._waiting.remove(entry)
                self._totals.add([entry[0]])

    def _unseat(self, one: Decoding) -> None:
        """The last sequence takes the seat, as it does the session's row."""
        self.prompts.leave(one)
        self.session.leave(one.seat)
        last = self._seated.pop()
        if last is not one:
            self._seated[one.seat] = last
            last.seat = one.seat
        if self._reading is not None and self._reading[0] is one:
            self._reading = None
        for lane in self._lanes:
            if one in lane.members:
                lane.leave(one)
                break
        self._lanes = [lane for lane in self._lanes if lane.members]
        self._totals.add([one])
        one.release()

    def _read(self) -> bool:
        """Read prompts into free seats, until CHUNK tokens or more are read; True if any was read,
        or copied from what is known."""
        left, begun = CHUNK, False
        while left > 0:
            scores = None
            if self._reading is None:
                free = len(self._seated) < self.seats and self._waiting
                if not free or isinstance(self._waiting[0], Task):
                    break
                head = self._waiting.popleft()
                assert not isinstance(head, Task)
                begun = True
                self._reading = head
                one = head[0]
                self._seated.append(one)
                one.attempt(one.seated, self.session.seat())
                if one.done:
                    self._unseat(one)
                    continue
                scores = self.prompts.recall(one)
            one, lane = self._reading
            if scores is None:
                count, scores = self.prompts.read(one)
                left, begun = left - count, True
            if one.read == len(one.prompt):
                self._begin(one, lane, scores)
        return begun

    def _begin(self, one: Decoding, lane: Lane, scores: Scores) -> None:
        """A prompt has been read: its first token, which may be its last."""
        self._reading = None
        if lane not in self._lanes:
            self._lanes.append(lane)
        lane.join(one)
        one.attempt(one.begin, scores, 0)
        one.digest()
        if one.done:
            lane.settle()
            self._unseat(one)

    def _decode(self) -> None:
        """Propose, score, judge, commit: one engine call for all that are seated."""
        session, seated, lanes = self.session, self._seated, self._lanes
        if any([one.course is not None for one in seated]):
            self._follow()
            return
        began = perf_counter()
        room = session.capacity - max([one.length for one in seated])
        together, least = len(seated) > 1, max([one.least for one in seated])
        step = JointStep(lanes, seated, room, least)
        step.plan(session.supports_trees and not (together and session.packs))
        trees = step.trees
        packed = pack(trees, least)
        counts = [max(len(tree), least) for tree in trees] if together else None
        scores = session.score(*packed, counts)
        paths: list[tuple[int, ...]] = [()] * len(seated)
        emitted: list[tuple[Lane, Decoding, list[int]]] = []
        for lane in lanes:
            for one in lane.members:
                seat = one.seat
                one.together = one.together or together
                paths[seat], fresh = one.judged(trees[seat], scores, seat)
                emitted.append((lane, one, fresh))
        session.commit(paths)
        milliseconds = 1e3 * (perf_counter() - began)
        step.took(milliseconds, emitted)
        if self.explain is not None:
            for lane, one, fresh in emitted:
                self.explain(one, step.story(milliseconds, lane, one, paths[one.seat], fresh))
        for one in seated:
            one.digest()
        for lane in lanes:
            lane.settle()

    def _follow(self) -> None:
        """A step in which some sequences are computed without all of the model: a row of each, and
        nobody drafts. What it takes says nothing of what other steps do."""
        began = perf_counter()
        members = [one for lane in self._lanes for one in lane.members]
        scores = follow_courses(self.session, members)
        paths: list[tuple[int, ...]] = [()] * len(self._seated)
        emitted: list[list[int]] = []
        for one in members:
            one.together = one.together or len(members) > 1
            paths[one.seat], fresh = one.judged(one.root()[1], scores, one.seat)
            emitted.append(fresh)
        self.session.commit(paths)
        milliseconds = 1e3 * (perf_counter() - began)
        if self.explain is not None:
            for one, fresh in zip(members, emitted, strict=True):
                self.explain(one, story_of(one, paths[one.seat], fresh, milliseconds))
        for one in members:
            one.digest()
        for lane in self._lanes:
            lane.settle()

    def _fail(self, error: Exception) -> None:
        """A step went wrong: nobody who took part can go on, and the caches start anew."""
        for one in self._seated:
            if not one.done:
                one.error = error
            one.release()
        self._totals.add(self._seated)
        for lane in self._lanes:
            lane.clear()
        self._seated, self._lanes = [], []
        self._reading = None
        self._fresh = False
