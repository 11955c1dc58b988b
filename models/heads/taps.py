"""Which layers a head reads: the numbers in its config, and what each format means by them.

A `Tap` is the 0-based layer whose *output* is read. ModelOpt and SpecForge write that number
(`eagle_config`), z-lab too (`dflash_config.target_layer_ids`). The speculators format and bare
top-level keys write the layer that is *entered*, which is the index in transformers'
`hidden_states`: one more. Without any, EAGLE-3's own code captures what enters layers 2, n/2, n-3.
"""

from __future__ import annotations

from collections.abc import Sequence

from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles
from graftline.models.heads.head import Tap

EAGLE3 = (Tap(1), Tap(-1, middle=True), Tap(-4))
"""What EAGLE-3's own code reads of a host of n layers: the outputs of 1, n/2-1, n-4."""
IDS = "eagle_aux_hidden_state_layer_ids"
ENTERED = (IDS, "target_layer_ids")


def requested_taps(config: Config, files: HeadFiles, count: int) -> tuple[Tap, ...] | None:
    """The taps that the caller gave in place of the file's; None without. Raises CheckpointError
    where they are not `count`."""
    if files.taps is None:
        return None
    if len(files.taps) != count:
        config.refuse(f"the head reads {count} hidden states, {len(files.taps)} taps were given")
    config.decide(f"taps as given: outputs of {', '.join(str(t) for t in files.taps)}")
    return files.taps


def eagle3_taps(
    config: Config, modelopt: Config, files: HeadFiles, count: int
) -> tuple[Tap, ...]:
    """The taps of an EAGLE-3 head with `count` of them. Raises CheckpointError."""
    named = _named(config, modelopt)
    if (requested := requested_taps(config, files, count)) is not None:
        return requested
    if named is None:
        return _default(config, count)
    line, layers = named
    config.decide(f"taps by {line}: outputs of {', '.join(str(i) for i in layers)}")
    return as_taps(config, layers, count)


def _named(config: Config, modelopt: Config) -> tuple[str, tuple[int, ...]] | None:
    """What the config says of the layers, and those whose output is read by it."""
    named: dict[str, tuple[int, ...]] = {}
    if ids := modelopt.ids(IDS):
        named[f"eagle_config: {IDS}={list(ids)}, numbers of layers whose output is read"] = ids
    for key in ENTERED:
        if ids := config.ids(key):
            line = f"{key}={list(ids)}, numbers of layers that are entered (one more than read)"
            named[line] = tuple(i - 1 for i in ids)
    if len(set(named.values())) > 1:
        config.refuse(f"two keys name different layers: {'; '.join(named)}; remove one")
    return next(iter(named.items()), None)


def as_taps(config: Config, layers: Sequence[int], count: int) -> tuple[Tap, ...]:
    """Taps of the outputs of `layers`. Raises CheckpointError for the embedding, and where the
    files have room for another number of taps."""
    if any(layer < 0 for layer in layers):
        config.refuse("names what enters layer 0, the host's embedding, which is no layer's output")
    if len(layers) != count:
        config.refuse(
            f"names {len(layers)} layers, but tensor 'fc.weight' takes {count} hidden states"
        )
    return tuple(Tap(layer) for layer in layers)


def _default(config: Config, count: int) -> tuple[Tap, ...]:
    if count != len(EAGLE3):
        config.refuse(
            f"names no layers, and tensor 'fc.weight' takes {count} hidden states, not EAGLE-3's "
            f"three; say which in {IDS}"
        )
    config.decide(
        "config.json names no layers: outputs of 1, n/2-1 and n-4 of the host's n, as EAGLE-3's "
        "own code (which captures what enters 2, n/2 and n-3)"
    )
    return EAGLE3
