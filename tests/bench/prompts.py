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
    "hurricanes", "the nervous system", "credit cards", "wine", "the Great Wall of China", "yoga",
    "cybersecurity", "blood types", "opera", "inflation", "tides", "typewriters", "pasta", "go",
    "renewable energy", "the lungs", "museums", "bicycles", "knitting", "the Ottoman Empire",
    "deserts", "note-taking", "wind turbines", "vikings", "elephants", "insurance", "haiku",
    "composting", "satellites", "allergies", "public speaking", "mangroves", "railways",
    "statistics", "swimming", "tunnels", "coffee", "fossils", "plastic waste", "naps",
    "baroque art", "batteries", "a village on a cliff", "sign language", "salmon", "avalanches",
    "chocolate", "search engines", "elections", "wetlands", "drones", "chess tournaments",
    "nightmares", "decimals", "a retired pilot", "a stray cat", "a ferry crossing",
    "an antique clock", "a bakery", "databases", "recursion", "sorting algorithms",
    "regular expressions", "unit tests", "gravity", "atoms", "enzymes", "the immune system",
    "genetics", "the ozone layer", "rivers", "job interviews", "budgeting", "mortgages", "taxes",
    "volunteering", "friendship", "honesty", "patience", "curiosity", "jealousy", "courage",
    "grief", "first aid", "camping", "hiking", "photography", "theatre", "film editing",
    "journalism", "philosophy", "ethics", "logic puzzles",
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
    "Write a product description for something inspired by {}.",
    "What are the advantages and disadvantages of {}?", "Give me a step-by-step guide to {}.",
    "Write a news report about {}.", "Invent five book titles about {} and describe each.",
    "Write a letter to my grandmother about {}.", "How would you teach {} in one hour?",
    "What questions would you ask an expert on {}?", "Describe {} without using the word itself.",
    "Write a speech about {} for a school assembly.", "What is the connection between {} and {}?",
    "Write a review of a documentary about {}.", "Explain the key terms that one needs for {}.",
    "Make a table of three facts about {} and three facts about {}.",
    "Rewrite this sentence in a formal tone: 'I think {} is really cool and you should try it.'",
    "Who are famous people connected with {}, and why?", "Write a diary entry about {}.",
    "Suggest a weekend plan that involves {}.", "What has changed about {} in the last century?",
    "Is it true that {} is overrated? Give a balanced answer.", "Write a riddle about {}.",
    "Write a JSON object that describes {} with five fields, and explain each field.",
    "What is {}?", "Why do people care about {}?", "Tell me a joke about {} and explain it.",
    "You are a museum guide. Introduce visitors to {}.", "Write a blog post about {} and {}.",
    "A class has a project on {}: {} pupils need {} sheets of paper each. How many sheets is that? "
    "Explain every step.",
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
