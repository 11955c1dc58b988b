"""EAGLE-3, 3.1, P-EAGLE and ModelOpt's keys: the tensors compute the reference; files' traps."""

from __future__ import annotations

import re
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
    causal,
    layer,
    mlp,
    silu,
    values,
)
from tests.models.heads.reference_eagle3 import Eagle3, Form
from tests.models.heads.reference_layers import ABSENT, TINY, drawn, state, written
from tests.models.heads.refusing import refuses

TERMS = 1000
PLAIN = Form()
FORMS = {
    "plain": PLAIN,
    "two layers, four taps": Form(layers=2, taps=4, bias=True, qk_norm=True),
    "3.1": Form(fc_norm=True, norm_output=True),
    "gpt-oss": Form(norm_before_fc=True, residual_normed=True),
    "wide host": Form(host_hidden=36, embedding=True),
    "whole vocabulary": Form(drafted=TINY.vocabulary, embedding=True),
    "windows": Form(layers=2, windows=(3, 0)),
}


def ids(form: Form) -> torch.Tensor:
    """The host's id of each of the head's tokens, ascending."""
    order = torch.randperm(form.sizes.vocabulary, generator=torch.Generator().manual_seed(1))
    return order[: form.drafted].sort().values


def files(form: Form, **changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and tensors of a head in the official form, but for the names of its layers."""
    tensors = state(drawn(Eagle3(form)))
    if form.drafted != form.sizes.vocabulary:
        tensors["d2t"] = ids(form) - torch.arange(form.drafted)
        tensors["t2d"] = torch.zeros(form.sizes.vocabulary, dtype=torch.bool)
        tensors["t2d"][ids(form)] = True
    switches: dict[str, Any] = {
        "draft_vocab_size": form.drafted, "num_hidden_layers": form.layers,
        "norm_before_fc": form.norm_before_fc, "fc_norm": form.fc_norm,
        "norm_before_residual": form.residual_normed, "norm_output": form.norm_output,
    }  # fmt: skip
    if form.host_hidden != form.sizes.hidden:
        switches["target_hidden_size"] = form.host_hidden
    if form.taps != 3:
        switches["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": list(range(form.taps))}
    if form.windows:
        names = {0: "full_attention"}
        kinds = [names.get(w, "sliding_attention") for w in form.windows]
        switches |= {"layer_types": kinds, "sliding_window": max(form.windows)}
    return TINY.config(**{**switches, **changes}), tensors


def midlayer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the official files."""
    return {re.sub(r"^layers\.0\.", "midlayer.", name): t for name, t in tensors.items()}


class Evaluation:
    """A loaded head by our names."""

    def __init__(self, head: Head) -> None:
        self.settings, self.w = head.settings, Weights(values(head))

    def entry(self, taps: Any) -> Any:
        s, width = self.settings, self.settings.host_hidden
        if s.norm_before_fc:
            taps = self.w.norm("fc_norm", taps, s.block.epsilon)
        if s.fc_norm:
            parts = [
                self.w.norm(f"fc_norm.{k}", taps[..., k * width : (k + 1) * width], s.block.epsilon)
                for k in range(s.taps)
            ]
            taps = np.concatenate(parts, axis=-1)
        return self.w.linear("fc", taps)

    def step(self, embeddings: Any, x: Any) -> tuple[Any, Any]:
        s, rows, first = self.settings, x.shape[1], self.w.under("layers.0")
        epsilon, positions = s.block.epsilon, np.arange(x.shape[1])
        normed = first.norm("hidden_norm", x, epsilon)
        both = np.concatenate([first.norm("embedding_norm", embeddings, epsilon), normed], axis=-1)
        x = normed if s.residual_normed else x
        x = x + attention(first, s.block, both, positions, causal(rows, s.windows[0]))
        x = x + mlp(first, first.norm("mlp_norm", x, epsilon))
        for index in range(1, s.layers):
            seen = causal(rows, s.windows[index])
            x = layer(self.w.under(f"layers.{index}"), s.block, x, positions, seen, normed=True)
        normed = self.w.norm("norm", x, epsilon)
        return (normed if s.norm_output else x), self.w.linear("lm_head", normed)


@pytest.mark.parametrize("name", FORMS)
def test_the_tensors_compute_the_reference(tmp_path: Path, name: str) -> None:
    form = FORMS[name]
    config, tensors = files(form)
    head = open_head(written(tmp_path, config, tensors))
    assert head.family == "eagle3"
    module, mine = drawn(Eagle3(form)), Evaluation(head)
    taps = torch.randn(2, 6, form.taps * form.host_hidden, dtype=torch.float64)
    embeddings = torch.randn(2, 2, 6, TINY.hidden, dtype=torch.float64)
    x, got = module.entry(taps), mine.entry(taps.numpy())
    for embedding in embeddings:
        x, logits = module.step(embedding, x)
        got, scores = mine.step(embedding.numpy(), got)
        assert_same(got, x.detach().numpy(), TERMS * form.layers)
        assert_same(scores, logits.detach().numpy(), TERMS * form.layers)


def test_old_names_and_new_names_are_one_head(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    nested = {
        re.sub(r"\.([qkv])_proj\.", r".qkv_proj.\1_proj.", name): t
        for name, t in midlayer(tensors).items()
    }
    want = values(open_head(written(tmp_path / "new", config, tensors)))
    for name, renamed in (("old", midlayer(tensors)), ("nested", nested)):
        got = values(open_head(written(tmp_path / name, config, renamed)))
        assert got.keys() == want.keys()
        assert all(np.array_equal(got[k], want[k]) for k in want)


def test_several_layers_under_the_old_name(tmp_path: Path) -> None:
    """ModelOpt names a list of layers `midlayer.{i}`."""
    config, tensors = files(FORMS["two layers, four taps"])
    old = {re.sub(r"^layers\.", "midlayer.", name): t for name, t in tensors.items()}
    want = values(open_head(written(tmp_path / "new", config, tensors)))
    got = values(open_head(written(tmp_path / "old", config, old)))
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[k], want[k]) for k in want)


def test_a_missing_tensor_has_the_files_own_name(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    del tensors["layers.0.mlp.up_proj.weight"]
    refuses(written(tmp_path / "new", config, tensors), r"'layers\.0\.mlp\.up_proj\.weight' is mis")
    folder = written(tmp_path / "old", config, midlayer(tensors))
    refuses(folder, r"'midlayer\.mlp\.up_proj\.weight' is missing")


def test_both_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    tensors["midlayer.hidden_norm.weight"] = tensors["layers.0.hidden_norm.weight"]
    refuses(written(tmp_path, config, tensors), "are the same tensor; remove one")


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForCausalLM", "LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "Eagle3DraftModel"],
)
def test_the_architecture_is_not_asked(tmp_path: Path, architecture: str) -> None:
    config, tensors = files(PLAIN, architectures=[architecture])
    head = open_head(written(tmp_path, config, midlayer(tensors)))
    assert head.family == "eagle3"
    assert "by tensor 'd2t'" in head.decided[0]


def test_without_d2t_the_first_layer_shows_it(tmp_path: Path) -> None:
    config, tensors = files(FORMS["whole vocabulary"])
    del config["draft_vocab_size"]
    head = open_head(written(tmp_path, config, tensors))
    assert (head.family, head.settings.draft_vocabulary) == ("eagle3", TINY.vocabulary)


# the vocabulary


def test_d2t_holds_offsets(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    head = open_head(written(tmp_path, config, tensors))
    assert np.array_equal(head.tensors["draft_ids"].numpy(), ids(PLAIN).numpy())


def test_d2t_that_holds_ids_is_refused(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    tensors["d2t"] = ids(PLAIN)
    refuses(written(tmp_path, config, tensors), "outside the vocabulary of 61|'t2d' marks token")
    del tensors["t2d"]
    tensors["d2t"] = torch.arange(23, 0, -1)
    refuses(written(tmp_path, config, tensors), "ids 0 and 1 both stand for 23")


def test_d2t_out_of_range(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    tensors["d2t"][5] = TINY.vocabulary
    words = r"'d2t': id 5 stands for 5 \+ 61 = 66, outside the vocabulary of 61"
    refuses(written(tmp_path, config, tensors), words)
    tensors["d2t"][5] = -6
    refuses(written(tmp_path, config, tensors), r"5 \+ -6 = -1, outside")


def test_t2d_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    token = int(ids(PLAIN)[3])
    tensors["t2d"][token] = False
    words = f"'t2d' does not mark token {token}, 'd2t' says otherwise"
    refuses(written(tmp_path, config, tensors), words)


def test_the_trimmed_size_has_two_names(tmp_path: Path) -> None:
    config, tensors = files(PLAIN, draft_vocab_size=ABSENT, truncated_vocab_size=23)
    assert open_head(written(tmp_path, config, tensors)).settings.draft_vocabulary == 23
    config["draft_vocab_size"] = 24
    refuses(written(tmp_path, config, tensors), "name different sizes")


def test_a_trimmed_vocabulary_needs_d2t(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    del tensors["d2t"], tensors["t2d"]
    refuses(written(tmp_path, config, tensors), "tensor 'd2t' is missing")


def test_the_head_needs_its_own_lm_head(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    del tensors["lm_head.weight"]
    refuses(written(tmp_path, config, tensors), "tensor 'lm_head.weight' is missing")
    config, tensors = files(FORMS["whole vocabulary"])
    del tensors["lm_head.weight"]
    head = open_head(written(tmp_path, config, tensors))
    assert not head.settings.own_lm_head
    assert any("no lm_head in the file: the host's serves" in line for line in head.decided)


def test_a_head_may_say_that_its_lm_head_is_the_hosts_rows(tmp_path: Path) -> None:
    config, tensors = files(PLAIN, verifier_lm_head=True)
    refuses(written(tmp_path, config, tensors), "a tensor 'lm_head.weight' all the same")
    del tensors["lm_head.weight"]
    head = open_head(written(tmp_path, config, tensors))
    assert not head.settings.own_lm_head
    assert any("the host's lm_head rows of the" in line for line in head.decided)
    config, tensors = files(FORMS["wide host"], verifier_lm_head=True)
    del tensors["lm_head.weight"]
    refuses(written(tmp_path, config, tensors), "no tensor 'lm_head.weight' in a head of width")


def test_a_head_of_another_width_needs_its_own_table(tmp_path: Path) -> None:
    config, tensors = files(FORMS["wide host"])
    del tensors["embed_tokens.weight"]
    refuses(written(tmp_path, config, tensors), "tensor 'embed_tokens.weight' is missing")


# the layers it reads


def tapped(tmp_path: Path, **changes: Any) -> Head:
    config, tensors = files(PLAIN, **changes)
    return open_head(written(tmp_path, config, tensors))


def test_layers_that_nobody_names_are_those_of_the_papers_code(tmp_path: Path) -> None:
    head = tapped(tmp_path)
    assert [tap.index(12) for tap in head.taps] == [1, 5, 8]
    assert [tap.index(33) for tap in head.taps] == [1, 15, 29]
    assert any("captures what enters 2, n/2 and n-3" in line for line in head.decided)


def test_modelopt_names_outputs_and_others_what_is_entered(tmp_path: Path) -> None:
    key = "eagle_aux_hidden_state_layer_ids"
    outputs = tapped(tmp_path, eagle_config={key: [1, 5, 8], "use_aux_hidden_state": True})
    entered = tapped(tmp_path, **{key: [2, 6, 9]})
    edge = tapped(tmp_path, target_layer_ids=[2, 6, 9])
    assert outputs.taps == entered.taps == edge.taps == (Tap(1), Tap(5), Tap(8))
    assert any("numbers of layers whose output is read" in line for line in outputs.decided)
    assert any("numbers of layers that are entered" in line for line in entered.decided)


def test_two_keys_that_differ_are_refused(tmp_path: Path) -> None:
    key = "eagle_aux_hidden_state_layer_ids"
    config, tensors = files(PLAIN, eagle_config={key: [2, 6, 9]}, **{key: [2, 6, 9]})
    refuses(written(tmp_path, config, tensors), "two keys name different layers")


def test_the_embedding_is_no_layers_output(tmp_path: Path) -> None:
    config, tensors = files(PLAIN, eagle_aux_hidden_state_layer_ids=[0, 6, 9])
    refuses(written(tmp_path, config, tensors), "names what enters layer 0")


def test_the_number_of_layers_must_be_that_of_fc(tmp_path: Path) -> None:
    config, tensors = files(PLAIN, eagle_config={"eagle_aux_hidden_state_layer_ids": [2, 6]})
    words = r"names 2 layers, but tensor 'fc\.weight' takes 3 hidden states"
    refuses(written(tmp_path, config, tensors), words)
    config, tensors = files(Form(taps=5), eagle_config={})
    refuses(written(tmp_path, config, tensors), r"names no layers, and tensor 'fc\.weight' takes 5")
    config, tensors = files(PLAIN, num_aux_hidden_states=4)
    refuses(written(tmp_path, config, tensors), "num_aux_hidden_states=4 is not hosted")


def test_taps_can_be_given(tmp_path: Path) -> None:
    config, tensors = files(Form(taps=2), eagle_config={})
    folder = written(tmp_path, config, tensors)
    head = open_head(folder, taps=[Tap(3), Tap(-1)])
    assert head.taps == (Tap(3), Tap(-1))
    assert any("taps as given: outputs of 3, n-1" in line for line in head.decided)
    refuses(folder, "reads 2 hidden states, 1 taps were given", taps=[Tap(3)])


def test_a_square_fc_is_ambiguous(tmp_path: Path) -> None:
    config, tensors = files(Form(taps=1))
    refuses(written(tmp_path, config, tensors), r"tensor 'fc\.weight' is square")


# ModelOpt, P-EAGLE, and what is refused


@pytest.mark.parametrize(("layers", "shared"), [(1, False), (2, True)])
def test_parallel_heads_of_modelopt(tmp_path: Path, layers: int, shared: bool) -> None:
    form = Form(parallel=2, parallel_layers=layers)
    steps = {"parallel_draft_step": 3, "parallel_draft_heads_num_layers": layers}
    config, tensors = files(form, eagle_config=steps)
    module = drawn(Eagle3(form))
    if shared:
        for head in module.parallel_draft_heads:
            head.lm_head = module.parallel_draft_heads[0].lm_head
        one = tensors.pop("parallel_draft_heads.0.lm_head.weight")
        del tensors["parallel_draft_heads.1.lm_head.weight"]
        tensors["parallel_draft_heads.lm_head.weight"] = one
    head = open_head(written(tmp_path, config, tensors))
    assert head.settings.parallel.shared_lm_head == shared
    w, x = Weights(values(head), "parallel."), torch.randn(2, 3, TINY.hidden, dtype=torch.float64)
    for index, want in enumerate(module.further(x)):
        y = x.numpy()
        for depth in range(layers):
            y = y + silu(w.linear(f"{index}.{depth}", y))
        y = w.linear("lm_head" if shared else f"{index}.lm_head", y)
        assert_same(y, want.detach().numpy(), TERMS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_aux_hidden_state", False), ("use_input_layernorm_in_first_layer", False),
        ("use_last_layernorm", False), ("use_mtp_layernorm", True), ("next_layer_regular", False),
    ],
)  # fmt: skip
def test_switches_of_modelopt_that_make_another_head(
    tmp_path: Path, key: str, value: bool
) -> None:
    config, tensors = files(PLAIN, eagle_config={key: value})
    refuses(written(tmp_path, config, tensors), f"eagle_config: {key}={value} is not hosted")
    config, tensors = files(PLAIN, eagle_config={key: not value})
    open_head(written(tmp_path, config, tensors))


def test_what_every_config_of_transformers_holds_is_no_switch(tmp_path: Path) -> None:
    """Training scripts save a config with all its keys, defaults included."""
    import transformers

    for kind in (transformers.LlamaConfig, transformers.Qwen3Config):
        own, tensors = files(PLAIN, rope_theta=ABSENT, ttt_length=7)
        every = kind(rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **own).to_dict()
        assert len(every) > len(own)
        open_head(written(tmp_path / kind.__name__, every, tensors))


def test_an_unknown_switch_is_refused(tmp_path: Path) -> None:
    config, tensors = files(PLAIN, eagle_config={"use_twisted_norm": True})
    refuses(written(tmp_path, config, tensors), "eagle_config: use_twisted_norm=True is a key that")
    config, tensors = files(PLAIN, residual_scale=2.0)
    refuses(written(tmp_path, config, tensors), "residual_scale=2.0 is a key that")


def test_quantized_drafts_are_refused(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    tensors["layers.0.self_attn.q_proj.input_quantizer._pre_quant_scale"] = torch.ones(48)
    refuses(written(tmp_path / "awq", config, tensors), "scales the inputs of quantized weights")
    folder = written(tmp_path / "fp4", *files(PLAIN))
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    refuses(folder, r"hf_quant_config\.json: the head is quantized by 'NVFP4'")


def test_the_host_in_the_file_is_not_read(tmp_path: Path) -> None:
    config, tensors = files(PLAIN)
    tensors["target_model.model.layers.0.mlp.up_proj.weight"] = torch.ones(2, 2)
    tensors["verifier_lm_head.weight"] = torch.ones(2, 2)
    head = open_head(written(tmp_path, config, tensors))
    assert not any("target" in name or "verifier" in name for name in head.tensors)


def test_a_mask_token_comes_with_its_hidden_states(tmp_path: Path) -> None:
    config, tensors = files(Form(mask=True), mask_token_id=60)
    head = open_head(written(tmp_path, config, tensors))
    assert head.settings.mask_token == 60
    settings = {**config, "mask_token_id": 61}
    refuses(written(tmp_path / "out", settings, tensors), "mask_token_id=61 is outside vocab_size")
    assert np.array_equal(head.tensors["mask_hidden"].numpy(), tensors["mask_hidden"].numpy())
    del tensors["mask_hidden"]
    refuses(written(tmp_path, config, tensors), "a mask token without the tensor 'mask_hidden'")


def test_both_kinds_of_norms_before_fc_are_refused(tmp_path: Path) -> None:
    config, tensors = files(replace(PLAIN, fc_norm=True, norm_before_fc=True))
    refuses(written(tmp_path, config, tensors), "norm_before_fc and fc_norm exclude one another")


def test_a_norm_that_the_config_does_not_name_is_refused(tmp_path: Path) -> None:
    config, tensors = files(replace(PLAIN, fc_norm=True), fc_norm=ABSENT)
    refuses(written(tmp_path, config, tensors), r"tensor 'fc_norm\.0\.weight' and 2 more has no")
