"""The losses beside their formulas, and what a part of the vocabulary says of the whole."""

from __future__ import annotations

import torch

from graftline.models.training.losses import CE, VARIATION, Scored, Wanted, draft_loss

VOCABULARY, ROWS = 50, 7


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of drafts and of the host [R, V]."""
    random = torch.Generator().manual_seed(3)
    ours, theirs = (2 * torch.randn(ROWS, VOCABULARY, generator=random) for _ in range(2))
    return ours, theirs


def wanted(theirs: torch.Tensor, best: int) -> Wanted:
    found = torch.topk(theirs.log_softmax(-1), best, dim=-1)
    return Wanted(found.indices, found.values, theirs.argmax(-1))


def whole(vocabulary: int) -> Scored:
    random = torch.Generator().manual_seed(0)
    return Scored.choose(
        torch.arange(3), torch.arange(vocabulary), vocabulary, vocabulary, random
    )


def by_id(logits: torch.Tensor, scored: Scored) -> torch.Tensor:
    return logits[:, scored.ids]


def test_over_the_whole_vocabulary_the_loss_is_its_formula() -> None:
    ours, theirs = drawn()
    scored = whole(VOCABULARY)
    assert sorted(scored.ids.tolist()) == list(range(VOCABULARY))
    p, q = theirs.softmax(-1), ours.softmax(-1)
    all_of_it = wanted(theirs, VOCABULARY)
    divergence = (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(draft_loss(by_id(ours, scored), all_of_it, scored, True), divergence)
    variation = 0.5 * (p - q).abs().sum(-1).mean()
    entropy = -q.log().gather(-1, theirs.argmax(-1)[:, None]).mean()
    torch.testing.assert_close(
        draft_loss(by_id(ours, scored), all_of_it, scored, False),
        CE * entropy + VARIATION * variation,
    )


def test_what_is_beyond_the_hosts_best_tokens_is_one_more_token() -> None:
    ours, theirs = drawn()
    scored, some = whole(VOCABULARY), wanted(theirs, 5)
    p, q = (x.softmax(-1).gather(-1, some.best) for x in (theirs, ours))
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
    entropy = -ours.log_softmax(-1).gather(-1, some.token[:, None]).mean()
    torch.testing.assert_close(
        draft_loss(by_id(ours, scored), some, scored, False),
        CE * entropy + VARIATION * 0.5 * (p - q).abs().sum(-1).mean(),
    )


def test_a_draft_that_is_the_host_loses_nothing() -> None:
    _, theirs = drawn()
    scored = whole(VOCABULARY)
    loss = draft_loss(by_id(theirs, scored), wanted(theirs, 5), scored, True)
    assert loss > 0.01, "what is beyond the host's best tokens is not drafted in this form"
    full = draft_loss(by_id(theirs, scored), wanted(theirs, VOCABULARY), scored, True)
    torch.testing.assert_close(full, torch.zeros(()), atol=1e-5, rtol=0)


def test_a_sample_of_the_vocabulary_stands_for_all_of_it() -> None:
    ours, _ = drawn()
    spoken = torch.tensor([4, 9, 9, 30])
    total = ours.exp().sum(-1)
    found: list[torch.Tensor] = []
    for seed in range(400):
        random = torch.Generator().manual_seed(seed)
        scored = Scored.choose(spoken, torch.arange(VOCABULARY), VOCABULARY, 20, random)
        assert len(scored.ids) == 20
        assert {4, 9, 30} <= set(scored.ids.tolist())
        assert scored.places[scored.ids].tolist() == list(range(20))
        assert int((scored.places >= 0).sum()) == 20
        found.append((by_id(ours, scored) + scored.weights).exp().sum(-1))
    drawn_sums = torch.stack(found)
    error = drawn_sums.std(0) / len(found) ** 0.5
    assert ((drawn_sums.mean(0) - total).abs() < 4 * error).all()
    assert (error < 0.1 * total).all()
