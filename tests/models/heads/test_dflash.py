"""DFlash, DFlash2, JetSpec, DSpark and Domino: the tensors compute the reference; the traps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.models.heads import Head, Tap, open_head
from tests.models.heads.evaluate import (
    Weights,
    assert_same,
    attention,
    mlp,
    sigmoid,
    silu,
    values,
)
from tests.models.heads.reference_dflash import DFlash, Form
from tests.models.heads.reference_layers import ABSENT, TINY, drawn, state, written
from tests.models.heads.refusing import refuses

TERMS = 2000
PLAIN = Form()
OWN = {"target_layer_ids": [1, 5, 9], "mask_token_id": 60}
LAYERS = ["sliding_attention", "full_attention"]


def files(form: Form, own: Any = None, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Config and tensors in z-lab's layout; `own` is added to `dflash_config`."""
    settings: dict[str, Any] = {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": form.block,
        "num_target_layers": 12, "num_hidden_layers": form.layers, "attention_bias": False,
        "dflash_config": {**OWN, **(own or {})}, "max_window_layers": 2, "sliding_window": None,
        "use_sliding_window": False, "layer_types": ["full_attention"] * form.layers,
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"}, "dtype": "bfloat16",
    }  # fmt: skip
    return TINY.config(**{**settings, **changes}), state(drawn(DFlash(form)))


def opened(folder: Path, form: Form, own: Any = None, **changes: Any) -> Head:
    return open_head(written(folder, *files(form, own, **changes)))


def mixed(w: Weights, head: Head, x: Any, side: int, inner: Any) -> Any:
    """x through the convolution of a part, for its input (0) or output (1); `inner`: its normed
    input."""
    form = head.settings.convolution
    if form is None:
        return x
    shape = (*inner.shape[:-1], 2, form.size, inner.shape[-1] // form.group)
    dynamic = w.linear("projection", inner).reshape(shape)[..., side, :, :]
    kernel = w["base"][side] + np.repeat(dynamic, form.group, axis=-1)
    shifted = [np.pad(x, ((0, 0), (k, 0), (0, 0)))[:, : x.shape[1]] for k in range(form.size)]
    return sum(kernel[:, :, k] * shifted[k] for k in range(form.size))


def evaluated(head: Head, embeddings: Any, taps: Any) -> Any:
    """By our names: the normed hidden states of a block."""
    s, w = head.settings, Weights(values(head))
    epsilon, past, rows = s.block.epsilon, taps.shape[1], embeddings.shape[1]
    context, x = w.norm("hidden_norm", w.linear("fc", taps), epsilon), embeddings
    far = np.arange(past, past + rows)[:, None] - np.arange(past + rows)[None, :]
    for index in range(s.layers):
        seen = (far >= 0) if s.causal[index] else np.ones_like(far, bool)
        if s.windows[index]:
            seen = seen & (np.abs(far) < s.windows[index])
        part = w.under(f"layers.{index}")
        before, after = part.under("attention_conv"), part.under("mlp_conv")
        inner = part.norm("attention_norm", x, epsilon)
        entry = mixed(before, head, inner, 0, inner)
        out = attention(part, s.block, entry, np.arange(past + rows), seen, context)
        x = x + mixed(before, head, out, 1, inner)
        inner = part.norm("mlp_norm", x, epsilon)
        out = mlp(part, mixed(after, head, inner, 0, inner))
        x = x + mixed(after, head, out, 1, inner)
    return w.norm("norm", x, epsilon)


def assert_computes(head: Head, form: Form) -> None:
    """The head's hidden states are the reference's."""
    embeddings = torch.randn(2, form.block, TINY.hidden, dtype=torch.float64)
    taps = torch.randn(2, 7, form.taps * TINY.hidden, dtype=torch.float64)
    want = drawn(DFlash(form))(embeddings, taps).detach().numpy()
    assert_same(evaluated(head, embeddings.numpy(), taps.numpy()), want, TERMS)


def test_the_tensors_compute_the_reference(tmp_path: Path) -> None:
    head = opened(tmp_path, PLAIN)
    assert (head.family, head.settings.block_size, head.settings.mask_token) == ("dflash", 4, 60)
    assert not head.settings.anchor_drafts
    assert_computes(head, PLAIN)


def test_layers_are_named_by_their_outputs(tmp_path: Path) -> None:
    head = opened(tmp_path, PLAIN)
    assert head.taps == (Tap(1), Tap(5), Tap(9))
    assert any("hidden_states one further" in line for line in head.decided)
    assert any("rotary base 10000, which must be the host's" in line for line in head.decided)


def test_the_last_layer_is_read_behind_the_final_norm(tmp_path: Path) -> None:
    """hidden_states[n] of transformers, which z-lab's code reads, is the final norm's output."""
    head = opened(tmp_path, PLAIN, {"target_layer_ids": [1, 5, 11]})
    assert head.taps == (Tap(1), Tap(5), Tap(-1, normed=True))
    assert any("is behind the final norm, so is this tap" in line for line in head.decided)


def test_the_block_size_stands_in_either_place(tmp_path: Path) -> None:
    inner = opened(tmp_path / "inner", PLAIN, {"block_size": 6}, block_size=ABSENT)
    assert inner.settings.block_size == 6
    folder = written(tmp_path / "both", *files(PLAIN, {"block_size": 6}))
    refuses(folder, "the top level says block_size=4, dflash_config says 6; correct one")
    refuses(written(tmp_path / "none", *files(PLAIN, block_size=ABSENT)), "block_size is missing")


def test_windows_are_causal_unless_said_otherwise(tmp_path: Path) -> None:
    on = {"layer_types": LAYERS, "sliding_window": 3, "use_sliding_window": True}
    for name, changes, causal in (
        ("default", {}, (True, False)), ("false", {"is_causal": False}, (False, False)),
        ("true", {"is_causal": True}, (True, True)),
    ):  # fmt: skip
        head = opened(tmp_path / name, PLAIN, **on, **changes)
        assert (head.settings.windows, head.settings.causal) == ((3, 0), causal)
        assert_computes(head, replace(PLAIN, windows=(3, 0), causal=causal))
        first = "3, backwards only" if causal[0] else "3"
        second = "all, backwards only" if causal[1] else "all"
        assert f"positions that each layer attends to: {first}; {second}" in head.decided


def test_one_window_for_all_layers(tmp_path: Path) -> None:
    head = opened(tmp_path / "on", PLAIN, {"use_swa": True, "swa_window_size": 5})
    assert head.settings.windows == (5, 5)
    head = opened(tmp_path / "off", PLAIN, {"use_swa": False, "swa_window_size": 5})
    assert head.settings.windows == (0, 0)


def test_windows_that_contradict_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, *files(PLAIN, layer_types=LAYERS))
    refuses(folder, "layer_types names sliding attention, but no window is on")


def test_jetspec_is_causal(tmp_path: Path) -> None:
    form = replace(PLAIN, causal=(True, True))
    head = opened(tmp_path / "jet", form, {"causal_head": True})
    assert (head.family, head.settings.causal) == ("jetspec", (True, True))
    assert_computes(head, form)
    neither = {"causal_head": False, "causal": False}
    assert opened(tmp_path / "no", PLAIN, neither).family == "dflash"
    folder = written(tmp_path / "two", *files(PLAIN, {"causal_head": True, "causal": False}))
    refuses(folder, "causal=False and causal_head=True contradict")


DFLASH2 = Form(convolution=(2, 4), selector=(7, 5))
SECOND = {
    "conv_kernel_size": 2, "conv_group_size": 4, "selector_rank": 7, "selector_top_k": 5,
    "output_multiplier": 0.5, "final_logit_softcapping": 20.0,
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_dflash2_computes_the_reference(tmp_path: Path, suffix: str) -> None:
    """Its codebooks are parameters in some files and embeddings in others."""
    config, tensors = files(DFLASH2, SECOND, architectures=["DFlash2DraftModel"], is_causal=False)
    for side in ("predecessor", "successor"):
        key = f"candidate_selector.{side}_codebook"
        tensors[key + suffix] = tensors.pop(key)
    head = open_head(written(tmp_path, config, tensors))
    assert (head.family, head.settings.output_multiplier, head.settings.softcap) == (
        "dflash2", 0.5, 20.0,
    )  # fmt: skip
    assert_computes(head, DFLASH2)
    selector, w = drawn(DFlash(DFLASH2)).candidate_selector, Weights(values(head), "selector.")
    hidden = torch.randn(3, TINY.hidden, dtype=torch.float64)
    before, candidates = torch.tensor([5, 6, 7]), torch.arange(15).view(3, 5)
    row = w["predecessor"][before] * w.linear("projection", hidden.numpy())
    got = np.einsum("br,bkr->bk", row, w["successor"][candidates])
    assert_same(got, selector(hidden, before, candidates).detach().numpy(), TERMS)


def test_dflash2_of_another_group_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, *files(DFLASH2, {**SECOND, "conv_group_size": 5}))
    refuses(folder, "conv_group_size=5 does not divide hidden_size=24")
    folder = written(tmp_path, *files(DFLASH2, {**SECOND, "conv_kernel_size": 3}))
    refuses(folder, r"base_kernel' is \[2, 2, 24\], but by config.* must be \[2, 3, 24\]")
    folder = written(tmp_path, *files(DFLASH2, OWN))
    refuses(folder, "'candidate_selector.hidden_projection.weight' and 10 more has no place")


def spark(kind: str, **changes: Any) -> tuple[Form, dict[str, Any]]:
    own = {
        "projector_type": "dspark", "markov_rank": 5, "markov_head_type": kind,
        "enable_confidence_head": True, "confidence_head_with_markov": True,
    }  # fmt: skip
    return Form(markov=kind, confidence=True, **changes), own


def bias(head: Head, before: Any, hidden: Any) -> Any:
    """DSpark's Markov head by our names."""
    w, kind = Weights(values(head), "markov."), head.settings.markov.kind
    row = w["w1"][before]
    if kind == "gated":
        row = row * sigmoid(w.linear("gate", np.concatenate([hidden, row], axis=-1)))
    if kind != "rnn":
        return row @ w["w2"].T
    moved, found = np.zeros_like(row[:, 0]), []
    for step in range(row.shape[1]):
        joint = np.concatenate([moved, row[:, step], hidden[:, step]], axis=-1)
        keep, new, out = np.split(w.linear("joint", joint), 3, axis=-1)
        moved = sigmoid(keep) * moved + (1 - sigmoid(keep)) * np.tanh(new)
        found.append(np.tanh(out) @ w["w2"].T)
    return np.stack(found, axis=1)


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
def test_dspark_computes_the_reference(tmp_path: Path, kind: str) -> None:
    form, own = spark(kind)
    head = opened(tmp_path, form, own)
    assert (head.family, head.settings.anchor_drafts) == ("dspark", True)
    assert_computes(head, form)
    module = drawn(DFlash(form))
    before = torch.randint(0, 61, (2, 4), generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(2, 4, TINY.hidden, dtype=torch.float64)
    want = module.markov_head(before, hidden).detach().numpy()
    assert_same(bias(head, before.numpy(), hidden.numpy()), want, TERMS)
    w = Weights(values(head))
    features = np.concatenate([hidden.numpy(), w["markov.w1"][before.numpy()]], axis=-1)
    both = torch.cat([hidden, module.markov_head.markov_w1(before)], dim=-1)
    want = module.confidence_head.proj(both).detach().numpy()
    assert_same(w.linear("confidence", features), want, TERMS)


def test_dspark_in_each_place_that_files_write_it(tmp_path: Path) -> None:
    form, own = spark("vanilla")
    top = {k: v for k, v in own.items() if k != "projector_type"}
    renamed = {"use_confidence_head": True, **{k: v for k, v in own.items() if "enable" not in k}}
    heads = [
        opened(tmp_path / "top", form, None, **top),
        opened(tmp_path / "own", form, None, dspark_config=own),
        opened(tmp_path / "use", form, renamed),
    ]
    assert all(head.settings == heads[0].settings for head in heads)
    folder = written(tmp_path / "two", *files(form, own, dspark_config={"markov_rank": 6}))
    refuses(folder, "dflash_config says markov_rank=5, dspark_config says 6")


def test_switches_of_dspark_must_be_as_the_file(tmp_path: Path) -> None:
    form, own = spark("vanilla")
    folder = written(tmp_path, *files(form, {**own, "enable_confidence_head": False}))
    refuses(folder, r"enable_confidence_head says \[False\], but the file holds 'confidence_head")
    folder = written(tmp_path, *files(form, {**own, "markov_head_type": "lstm"}))
    refuses(folder, "markov_head_type='lstm' is not hosted; known: gated, rnn, vanilla")
    folder = written(tmp_path, *files(form, {**own, "confidence_head_with_markov": False}))
    refuses(folder, r"'confidence_head\.proj\.weight' is \[1, 29\], but .* must be \[1, 24\]")
    head = opened(tmp_path, form, {**own, "sample_from_anchor": False})
    assert not head.settings.anchor_drafts


@pytest.mark.parametrize(("shifted", "prefix"), [(False, 0), (False, 1), (True, 0), (True, 2)])
def test_domino_computes_the_reference(tmp_path: Path, shifted: bool, prefix: int) -> None:
    form = Form(domino=(9, 11))
    own = {
        "projector_type": "domino", "gru_hidden_dim": 9, "emb_dim": 11, "shift_label": shifted,
        "pure_draft_prefix_len": prefix,
    }  # fmt: skip
    head = opened(tmp_path, form, own)
    part = head.settings.domino
    assert (head.family, head.settings.anchor_drafts) == ("domino", shifted)
    assert part.first == prefix + (not shifted)
    hidden, tokens = torch.randn(2, 2, 4, TINY.hidden, dtype=torch.float64)
    want = drawn(DFlash(form)).corrected(hidden, tokens, part.first, shifted).detach().numpy()
    w, moved, states = Weights(values(head)), np.zeros((2, part.state)), []
    for step in range(4):
        a = np.split(tokens[:, step].numpy() @ w["gru.input.weight"].T, 3, axis=-1)
        b = np.split(moved @ w["gru.state.weight"].T, 3, axis=-1)
        reset, update = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
        moved = (1 - update) * np.tanh(a[2] + reset * b[2]) + update * moved
        states.append(moved)
    chosen = [states[row if shifted else row - 1] for row in range(part.first, 4)]
    x = np.concatenate([hidden[:, part.first :].numpy(), np.stack(chosen, axis=1)], axis=-1)
    got = w.linear("correction.1", silu(w.linear("correction.0", x)))
    assert_same(got, want, TERMS)


def test_early_files_have_a_container_around_the_parts(tmp_path: Path) -> None:
    form, own = spark("vanilla")
    config, tensors = files(form, own)
    parts = ("markov_head", "confidence_head")
    early = {f"logit_head.{k}" if k.startswith(parts) else k: v for k, v in tensors.items()}
    want = values(open_head(written(tmp_path / "new", config, tensors)))
    got = values(open_head(written(tmp_path / "early", config, early)))
    assert all(np.array_equal(got[k], want[k]) for k in want | got)
    early.pop("logit_head.confidence_head.proj.bias")
    refuses(written(tmp_path / "cut", config, early), r"'confidence_head\.proj\.bias' is missing")


def test_latent_attention_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, *files(PLAIN, {"attention_mode": "mla"}))
    refuses(folder, r"attention_mode='mla' is not hosted \(latent attention\)")
    opened(tmp_path, PLAIN, {"attention_mode": "gqa"}, target_hidden_size=24)
    folder = written(tmp_path, *files(PLAIN, target_hidden_size=48))
    refuses(folder, r"target_hidden_size=48 is not hosted \(a host of another width\)")


def test_projectors_that_are_not_hosted_are_named(tmp_path: Path) -> None:
    for name, words in (
        ("xpress", "XPress heads are not hosted"), ("lilicorr", "LiLiCorr heads are not hosted"),
        ("tetris", "projector_type='tetris' is not hosted; known: dflash, domino, dspark"),
    ):  # fmt: skip
        refuses(written(tmp_path, *files(PLAIN, {"projector_type": name})), words)


def test_keys_that_are_missing_or_too_many(tmp_path: Path) -> None:
    refuses(written(tmp_path, *files(PLAIN, {"noise_steps": 3})), "noise_steps=3 is a key that")
    refuses(written(tmp_path, *files(PLAIN, {"mask_token_id": None})), "mask_token_id is missing")
    refuses(written(tmp_path, *files(PLAIN, {"mask_token_id": 61})), "mask_token_id=61 is outside")
    config, tensors = files(PLAIN)
    tensors["layers.0.self_attn.g_proj.weight"] = torch.ones(2, 2)
    refuses(written(tmp_path, config, tensors), "g_proj.weight' has no place")
    config, tensors = files(PLAIN, {"target_layer_ids": [1, 5]})
    words = r"'fc\.weight' is \[24, 72\], but by config\.json .* must be \[24, 48\]"
    refuses(written(tmp_path, config, tensors), words)


def test_taps_can_be_given(tmp_path: Path) -> None:
    folder = written(tmp_path, *files(PLAIN, {"target_layer_ids": None}))
    refuses(folder, "target_layer_ids is missing")
    assert open_head(folder, taps=[Tap(0), Tap(1), Tap(2)]).taps == (Tap(0), Tap(1), Tap(2))
