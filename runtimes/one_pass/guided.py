"""Guided canvases: conditions and unconditional ones in one batch of twice the rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftline.errors import RequestError
from graftline.filling import Filling
from graftline.ports import Port
from graftline.runtimes.one_pass.feeding import Array, told

PREFIX = "unconditional_"
"""Of what a caller calls the value that stands for a condition in the other branch."""


def branches(
    names: Mapping[str, str], conditions: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The conditions, and what stands for some of them in the unconditional branch: for the
    condition "label" or "condition_0" it is "unconditional_label" or "unconditional_0". `names` are
    those that conditions may be given by."""
    own = {n: v for n, v in conditions.items() if n in names or not n.startswith(PREFIX)}
    words = {n.removeprefix(PREFIX): v for n, v in conditions.items() if n not in own}
    known = {w: f"condition_{w}" if f"condition_{w}" in names else w for w in words}
    return own, {known[word]: value for word, value in words.items()}


def check_guidance(
    path: Path, filling: Filling, main: Port, unconditional: Mapping[str, Any]
) -> None:
    """Raise RequestError where guidance and the unconditional branch do not go together, and where
    a graph has no batch for both."""
    if filling.guidance == 1:
        if unconditional:
            name = next(iter(unconditional))
            raise RequestError(f"unconditional '{name}' is read with guidance alone; add guidance=")
        return
    if not unconditional:
        raise RequestError(
            f"guidance={filling.guidance:g} needs what stands for a condition in the unconditional "
            "branch; give unconditional_NAME="
        )
    if isinstance(main.shape[0], int):
        raise RequestError(
            f"{path}: '{main.name}' {told(main)} has no free batch for two branches; export it "
            "with a dynamic batch"
        )


def both(conditional: Mapping[str, Array], unconditional: Mapping[str, Array]) -> dict[str, Array]:
    """The rows of one branch, and behind them those of the other."""
    return {n: np.concatenate([a, unconditional[n]]) for n, a in conditional.items()}
