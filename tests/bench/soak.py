"""Threads and coroutines over one engine, with cancels at random: every text right, no seat lost.

    python tests/bench/soak.py BUNDLE [--minutes 10] [--threads 40] [--tasks 200]

Exits 1 where a finished text is another than one at a time, a seat is lost, or its own memory
has grown by more than 5 % since the first tenth of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import graftline

OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}
RECIPES = ("plain", "prompt-lookup", "suffix")


class Soak:
    """What is asked, what must come of it, and what came."""

    def __init__(self, engine: Any, until: float) -> None:
        chance, vocabulary = random.Random(0), engine.session.facts.vocabulary
        lengths = [3, 17, 60, 300]
        self.prompts = [[chance.randrange(vocabulary) for _ in range(n)] for n in lengths * 3]
        self.engine, self.until = engine, until
        self.right = [engine.generate(p, **OPTIONS).tokens for p in self.prompts]
        self.done = self.cancelled = self.wrong = 0

    def ask(self, number: int) -> None:
        """A thread's requests."""
        chance = random.Random(number)
        while time.monotonic() < self.until:
            place, recipe = chance.randrange(len(self.prompts)), chance.choice(RECIPES)
            begun = self.engine.submit(self.prompts[place], recipe=recipe, **OPTIONS)
            if chance.random() < 0.3:
                time.sleep(chance.random() / 10)
                begun.close()
                self.cancelled += 1
            else:
                self.count(begun.wait().tokens, place)

    async def answer(self, number: int) -> None:
        """A coroutine's requests."""
        chance = random.Random(-number - 1)
        while time.monotonic() < self.until:
            place, recipe = chance.randrange(len(self.prompts)), chance.choice(RECIPES)
            tokens: list[int] = []
            most = chance.randrange(1, 24) if chance.random() < 0.3 else 1000
            async for event in self.engine.agenerate(
                self.prompts[place], recipe=recipe, **OPTIONS
            ):
                tokens += event.tokens
                if len(tokens) >= most:
                    break
            if most == 1000:
                self.count(tokens, place)
            else:
                self.cancelled += 1

    def count(self, tokens: list[int], place: int) -> None:
        """A text has ended."""
        self.done += 1
        self.wrong += tokens != self.right[place]


def resident() -> int:
    """MiB of this process's own in memory: without files that are mapped, as the weights are, once
    for each graph that is opened over them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


def main() -> int:
    """Run, and print what came of it."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("bundle")
    given.add_argument("--minutes", type=float, default=10.0)
    given.add_argument("--threads", type=int, default=40)
    given.add_argument("--tasks", type=int, default=200)
    asked = given.parse_args()
    engine = graftline.load(asked.bundle, capacity=512)
    began = time.monotonic()
    soak = Soak(engine, began + 60 * asked.minutes)

    async def tasks() -> None:
        await asyncio.gather(*(soak.answer(n) for n in range(asked.tasks)))

    work = [threading.Thread(target=soak.ask, args=(n,)) for n in range(asked.threads)]
    work.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for thread in work:
        thread.start()
    time.sleep(6 * asked.minutes)
    early = resident()
    for thread in work:
        thread.join()
    while engine._scheduler.step():
        pass
    lost, late = len(engine._scheduler._seated), resident()
    print(
        f"{soak.done} finished, {soak.cancelled} cancelled, {soak.wrong} wrong, {lost} seats lost, "
        f"{early} MiB after a tenth of {asked.minutes:g} minutes, {late} MiB at the end"
    )
    return int(soak.wrong > 0 or lost > 0 or late > 1.05 * early)


if __name__ == "__main__":
    sys.exit(main())
