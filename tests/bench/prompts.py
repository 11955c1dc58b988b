"""Writes prompts of many kinds to train a draft head on: prompts.py OUT.jsonl [--count 800].

Every prompt is a task and a subject, put together by a seed: none is of Spec-Bench, whose questions
show afterwards what the head is worth.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

SUBJECTS = (
    "photosynthesis", "the French Revolution", "black holes", "compound interest", "bees",
    "the water cycle", "machine learning", "Roman aqueducts", "vaccines", "jazz music",
    "supply and demand", "volcanoes", "the printing press", "sourdough bread", "chess openings",
    "climate change", "the human heart", "public libraries", "electric cars", "origami",
    "the Silk Road", "glaciers", "time management", "solar panels", "medieval castles", "whales",
    "the stock market", "poetry", "gardening on a balcony", "the moon landing", "antibiotics",
    "remote work", "coral reefs", "the Industrial Revolution", "probability", "marathon training",
    "bridges", "tea", "dinosaurs", "recycling", "sleep", "the Renaissance", "electricity",
    "a city without cars", "learning a language", "migrating birds", "earthquakes", "cheese",
    "the internet", "democracy", "rainforests", "robots", "the olympic games", "dreams",
    "fractions", "a lighthouse keeper", "a lost dog", "a train journey", "an old map", "a market",
)  # fmt: skip
TASKS = (
    "Explain {} to a ten-year-old.", "What are the main causes and effects of {}?",
    "Write a short story about {}.", "Give five practical tips about {}.",
    "Compare {} with {} in a few sentences.", "Write an email to a colleague about {}.",
    "List three common misconceptions about {} and correct them.",
    "What would a beginner need to know about {}?", "Describe the history of {}.",
    "Write a dialogue between a teacher and a student about {}.",
    "Draft an outline for a talk on {}.", "Argue for and against {}.",
    "Write a poem about {}.", "How does {} affect everyday life?",
    "Write a Python function that has to do with {} and explain it step by step.",
    "Ask me four quiz questions about {}, with answers.",
    "Summarize what is known about {} in one paragraph.",
    "I have a question about {}. Why does it matter, and to whom?",
    "Translate this sentence into French and German: 'I read a book about {} yesterday.'",
    "A shop sells books about {} at {} dollars each. How much do {} of them cost? Think step by "
    "step.",
)


def main() -> None:
    """Write the file."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("out", type=Path)
    given.add_argument("--count", type=int, default=800)
    given.add_argument("--seed", type=int, default=0)
    asked = given.parse_args()
    chance, made = random.Random(asked.seed), dict[str, None]()
    while len(made) < min(asked.count, len(SUBJECTS) * (len(TASKS) - 1)):
        task = chance.choice(TASKS)
        words = [chance.choice(SUBJECTS) for _ in range(task.count("{}"))]
        if len(words) == 3:
            words[1:] = [str(chance.randint(2, 30)), str(chance.randint(2, 40))]
        made[task.format(*words)] = None
    lines = (json.dumps({"prompt": text}, ensure_ascii=False) for text in made)
    asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
