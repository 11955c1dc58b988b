"""All mutants, and those that no stated law can see."""

from __future__ import annotations

from faults.ends import ENDS
from faults.inner import INNER
from faults.masks import MASKS
from faults.weights import WEIGHTS

MUTANTS = [*MASKS, *INNER, *ENDS, *WEIGHTS]

BEYOND: dict[str, str] = {
    "accuracy-level-1": "more exact than was asked for, and only slower: no law sees cost",
}
"""mutant -> why no stated law can see it"""
