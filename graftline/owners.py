"""Whose a port or a stage is: the model's whose text it is, or a part's beside it ("head.0")."""

from __future__ import annotations

TARGET = "target"
"""The owner of what belongs to the host itself."""
DRAFT = "draft"
"""The owner of a draft's stages, and the name of its engine; what a recipe's needs call it."""
HEAD = "head.0"
"""The owner of a draft head's stages, and the name of its engine; of heads that are called one
after another, the first one's."""


def head_owner(number: int) -> str:
    """The owner of the stages of one of several heads that are called one after another."""
    return f"head.{number}"
