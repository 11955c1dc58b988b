"""What is known of a host, by its kind. Facts travel in the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from graftline.errors import BundleError
from graftline.filling import Filling
from graftline.path_search import PathSearch
from graftline.sampling.chunks import Chunks
from graftline.sampling.spec import Sampling
from graftline.typed_json import Misfit, read

FACTS_KEY = "graftline.facts"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What every host has. `dtype` is that of its activations; `source` is the checkpoint's own
    name, for people only: no code may branch on it."""

    kind: str = ""
    dtype: str = "float32"
    source: str = ""
    parameters: int = 0

    @staticmethod
    def variant(row: Mapping[str, Any]) -> type[Facts]:
        """The class that a row of JSON is read as. Raises KeyError for an unknown kind."""
        return KNOWN[row.get("kind", "")]

    def told(self) -> str:
        """The size of the host, in words."""
        return f"{self.parameters:,} parameters"


@dataclass(frozen=True)
class DecoderFacts(Facts):
    """A causal decoder. `positions` is the number of positions it can address (0: no bound),
    `mask_token` the id that stands where a token is to be predicted; None: it has none.
    `placeholders`: ids from `vocabulary` on that are read and never scored: at one of them the
    graph foretells a token further ahead (pass placeholders or hidden-transfer)."""

    kind: str = field(default="decoder", kw_only=True)
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    positions: int
    mask_token: int | None = None
    placeholders: int = 0

    def told(self) -> str:
        more = f", {self.placeholders} placeholders" if self.placeholders else ""
        return f"{self.layers} blocks{more}"


@dataclass(frozen=True)
class DraftBlockFacts(DecoderFacts):
    """A draft head that is a decoder of its own, over its target's tokens and hidden states."""

    kind: str = field(default="draft-block", kw_only=True)
    normed_state: bool = False
    """Whether what stands for the next feature is what the head's last norm gives."""
    block: int = 0
    """Rows of the block that it drafts in one call, the last chosen token's included; 0: it takes
    token after token, or as many masks as one likes behind them."""
    causal: bool = True
    """Whether rows of the block see only those before them."""
    anchor_drafts: bool = True
    """Whether the row of the last chosen token gives a token of the draft."""

    def told(self) -> str:
        return f"{self.layers} blocks over features of the target"


@dataclass(frozen=True)
class DenoiserFacts(Facts):
    """A network that says what of a noisy sample [B, C, H, W] is noise, at a time step. `height`
    and `width` are those that the graph is made for (0: any). `sampling` is how samples are drawn
    with it, None where that is not known; `time` the time step that is fixed. `keys` are the steps
    of a loop at which its encoder runs, () for all. A sample is decoded from latents = sample /
    `scale` + `shift`."""

    kind: str = field(default="denoiser", kw_only=True)
    channels: int
    height: int = 0
    width: int = 0
    sampling: Sampling | None = None
    time: float | None = None
    keys: tuple[int, ...] = ()
    scale: float = 1.0
    shift: float = 0.0
    chunks: Chunks | None = None
    """Where a sample is two consecutive chunks: their inputs, by the names of ports."""
    decoder: str = "decoder"
    """Which of the export's graphs makes images of samples."""

    def told(self) -> str:
        size = f" of {self.height} x {self.width}" if self.height and self.width else ""
        drawn = "" if self.sampling is None else f", {self.sampling.told()}"
        drawn += f", its encoder run in {len(self.keys)} of them" if self.keys else ""
        return f"samples{size} in {self.channels} channels{drawn}"


@dataclass(frozen=True)
class LatentDecoderFacts(Facts):
    """A network that makes a waveform [B, C, T] or an image [B, C, H, W] of fewer latents along
    its `axes` (1 or 2): a vocoder, the decoder of a codec or of a VAE, a super-resolution net.
    `upsampling` are the elements that one latent becomes along an axis, `latents` the channels of
    a latent (0: latents are ids, of which there are `codes`), `channels` those of the output."""

    kind: str = field(default="latent-decoder", kw_only=True)
    axes: int
    upsampling: int
    latents: int
    channels: int
    codes: int = 0

    def told(self) -> str:
        made = "a waveform" if self.axes == 1 else "an image"
        latents = f"latents of {self.latents} channels" if self.latents else f"{self.codes} ids"
        long = f"{self.upsampling} times as long as its {latents}"
        return f"{made} of {self.channels} channel{'s' * (self.channels > 1)}, {long}"


@dataclass(frozen=True)
class RecogniserFacts(Facts):
    """A network that writes a text in one pass: scores of `vocabulary` tokens for every position,
    of a signal [B, T, C] or an image [B, C, H, W] of so many `channels`. `positions` are how many
    it scores (0: as many as it counts in its input)."""

    kind: str = field(default="recogniser", kw_only=True)
    vocabulary: int
    channels: int
    positions: int = 0

    def told(self) -> str:
        many = f"{self.positions} positions" if self.positions else "as many positions as it counts"
        return f"{many} of {self.vocabulary} tokens in one pass"


@dataclass(frozen=True)
class DagRecogniserFacts(RecogniserFacts):
    """A recogniser whose positions are vertices of a directed acyclic graph: it also scores the
    transitions between them, and a text is a path. `states` is the width of a vertex's hidden
    state; `search` is how the path was found that the positions are of (None: they are all the
    vertices)."""

    kind: str = field(default="dag-recogniser", kw_only=True)
    states: int = 0
    search: PathSearch | None = None

    def told(self) -> str:
        if self.search is None:
            return f"a graph of vertices, of {self.vocabulary} tokens, with states of {self.states}"
        many = f"{self.positions} positions" if self.positions else "the positions"
        return f"{many} of a path by {self.search.by}, of {self.vocabulary} tokens, in one pass"


@dataclass(frozen=True)
class CanvasFacts(Facts):
    """A masked generator: scores of `vocabulary` tokens for every one of the `positions` of a
    canvas [B, N], which all see one another. `mask` is the id of a position whose token is not
    chosen yet, None where the graph does not say. `filling` is how a canvas is filled where a call
    says nothing else."""

    kind: str = field(default="canvas", kw_only=True)
    vocabulary: int
    positions: int
    mask: int | None = None
    filling: Filling = field(default_factory=Filling)

    def told(self) -> str:
        canvas = f"a canvas of {self.positions} positions of {self.vocabulary} tokens"
        return f"{canvas}, {self.filling.told()}"


@dataclass(frozen=True)
class QueryDecoderFacts(Facts):
    """A network that scores `classes` at every place of `axes` (2 or 3) by `queries`, rows that it
    multiplies with the features of all places, in one pass."""

    kind: str = field(default="query-decoder", kw_only=True)
    classes: int
    queries: int
    axes: int

    def told(self) -> str:
        places = "pixel" if self.axes == 2 else "voxel"
        return f"{self.classes} classes of every {places} by {self.queries} queries in one pass"


@dataclass(frozen=True)
class DraftHeadFacts(Facts):
    """Draft heads over the last hidden state of a decoder. Each of the `heads` has `layers` blocks
    of its own; `shared`: their states are scored by the decoder's lm_head, else each by one of its
    own. Without `tokens` head i scores the token i + 2 places behind a row; one that also reads the
    `tokens` next ones scores what follows them. `markov`: the rank of a bigram matrix by which each
    head is scored by the best token of the head before it too, and the first by the token behind
    the row; 0: none."""

    kind: str = field(default="draft-head", kw_only=True)
    hidden: int
    vocabulary: int
    heads: int
    layers: int
    shared: bool
    tokens: int = 0
    markov: int = 0

    def told(self) -> str:
        scored = "the target's lm_head" if self.shared else "an lm_head each"
        if self.tokens:
            return f"a head that also reads {self.tokens} tokens, of {self.layers} layers"
        layers = "one layer" if self.layers == 1 else f"{self.layers} layers"
        bigrams = f" and bigrams of rank {self.markov}" if self.markov else ""
        return f"{self.heads} heads of {layers}, scored by {scored}{bigrams}"


KNOWN: Mapping[str, type[Facts]] = {
    "decoder": DecoderFacts, "denoiser": DenoiserFacts, "draft-head": DraftHeadFacts,
    "draft-block": DraftBlockFacts, "latent-decoder": LatentDecoderFacts,
    "recogniser": RecogniserFacts, "dag-recogniser": DagRecogniserFacts, "canvas": CanvasFacts,
    "query-decoder": QueryDecoderFacts,
}  # fmt: skip
"""The kinds of host."""


def write_facts(model: ir.Model, facts: Facts) -> None:
    """Stamp the facts into the model."""
    model.metadata_props[FACTS_KEY] = json.dumps(asdict(facts))


def read_facts(model: ir.Model) -> Facts:
    """The facts stamped in the model. Raises BundleError when there are none, or of a kind that is
    not known."""
    text = model.metadata_props.get(FACTS_KEY)
    if text is None:
        raise BundleError("the graph carries no facts; it was not made by `graftline optimize`")
    row = json.loads(text)
    try:
        return read(Facts, row)
    except Misfit as error:
        raise BundleError(f"the graph's facts cannot be read ({error}); rebuild it") from error


def decoder_facts(model: ir.Model) -> DecoderFacts:
    """The facts of a decoder. Raises BundleError for another kind of host."""
    return as_decoder(read_facts(model))


def as_decoder(facts: Facts) -> DecoderFacts:
    """Facts that are a decoder's. Raises BundleError for another kind of host."""
    if not isinstance(facts, DecoderFacts):
        raise BundleError(
            f"{facts.source or 'the host'} is a {facts.kind}, not a decoder of text; its graph "
            "runs in ONNX Runtime as it lies in the bundle"
        )
    return facts
