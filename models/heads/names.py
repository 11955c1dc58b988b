"""The names of EAGLE's tensors: older files, and some exporters, call its layers otherwise."""

from __future__ import annotations

import re

from graftline.models.heads.files import HeadFiles


def canonical(key: str) -> str:
    """The name that newer files give a tensor: `layers.0` for `midlayer`."""
    key = re.sub(r"^midlayer\.(?=\d+\.)", "layers.", key)
    key = re.sub(r"^midlayer\.", "layers.0.", key)
    return re.sub(r"\.qkv_proj\.([qkv]_proj)\.", r".\1.", key)


def by_newer_names(files: HeadFiles) -> HeadFiles:
    """The files with newer names. Raises CheckpointError where one tensor has both."""
    older = any(re.match(r"midlayer\.(?!\d)", key) for key in files.weights.stored)
    return files.renamed(canonical, _older if older else str)


def _older(key: str) -> str:
    """The name that the first files give a tensor."""
    return re.sub(r"^layers\.0\.", "midlayer.", key)
