"""What `graftline tune` stored for this machine, and how the runtime uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError

Prior = Callable[[int], Sequence[float]]


def read_tuned(bundle: Bundle, key: str) -> Mapping[str, Any] | None:
    """The tuned table of this machine (`key` as for the costs), or None when nothing was tuned.

    By recipe: `template` (a tree of ranks) where its drafter takes one, and `priors`, by signal the
    measured chances of the rows. `tree`: the parents of the best tree for other stores. `lengths`:
    the network of each trained draft length. Raises BundleError for a damaged file.
    """
    return bundle.read_tuned(key)


def tuned_prior(tuned: Mapping[str, Any] | None, recipe: str, prior: Prior) -> Prior:
    """`Drafter.prior` with what was measured in its place, for the signals that were seen.

    Raises GraftlineError when the stored priors are no numbers by signal.
    """
    stored = (tuned or {}).get(recipe, {}).get("priors", {})
    try:
        known = {int(signal): tuple(float(c) for c in row) for signal, row in stored.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise GraftlineError(
            f"the tuned priors of {recipe} cannot be read ({error}); run graftline tune again"
        ) from error
    return lambda signal: known[signal] if signal in known else prior(signal)
