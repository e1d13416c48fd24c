"""Small tasks with an answer that can be learnt."""

import json
import random

import transformers

from search_spaces.architecture import TextSpec
from supernet.task_spec import TaskSpec

TEXT = TextSpec(vocab_size=600, max_positions=64)
CLASSES = TaskSpec("classification", ("calm", "strife", "neither"), max_tokens=64)
NUMBER = TaskSpec("regression", (), max_tokens=64)
TAGS = TaskSpec("tagging", ("B-PER", "I-PER", "O"), max_tokens=64)


def war_or_peace(paragraphs, count=120, seed=0):
    """Texts of a few words, one of which decides: rows of text and label."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = rng.choice(paragraphs).split()[:6]
        words.insert(rng.randrange(len(words)), "war" if number % 2 else "peace")
        rows.append({"text": " ".join(words), "label": ["calm", "strife"][number % 2]})
    return rows


def numbers_and_words(count=60, seed=0):
    """Sentences whose every word is tagged by whether it is a number."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [rng.choice(["the", "state", "of", "1", "22", "333", "union"]) for _ in range(rng.randint(3, 9))]
        rows.append({"tokens": words, "label": ["NUM" if word.isdigit() else "WORD" for word in words]})
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tokenizer_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)
