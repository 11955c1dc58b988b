"""The losses beside their formulas, and what a part of the vocabulary says of the whole."""

from __future__ import annotations

import torch

from graftline.models.training.losses import (
    CE,
    NEVER,
    UNSCORED,
    VARIATION,
    Scored,
    Wanted,
    draft_loss,
)

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


DRAFTED = torch.tensor([0, 1, 2, 5, 8, 13, 21, 34])


def of_drafted() -> Scored:
    random = torch.Generator().manual_seed(0)
    return Scored.choose(torch.arange(3, 40), DRAFTED, VOCABULARY, VOCABULARY, random)


def test_a_head_of_few_tokens_scores_only_those() -> None:
    scored = of_drafted()
    assert sorted(scored.ids.tolist()) == DRAFTED.tolist()
    assert scored.weights.tolist() == [0.0] * 8
    assert (scored.places == NEVER).sum() == VOCABULARY - 8
    random = torch.Generator().manual_seed(0)
    some = Scored.choose(torch.tensor([5, 6, 7]), DRAFTED, VOCABULARY, 3, random)
    assert some.ids.tolist()[0] == 5, "6 and 7 are spoken of, and never drafted"
    torch.testing.assert_close(some.weights.exp(), torch.tensor([1.0, 3.5, 3.5]))
    assert (some.places == UNSCORED).sum() == 5


def test_what_is_never_drafted_is_never_accepted() -> None:
    """1 - acceptance of the drafted tokens alone; CE where the token that followed is one."""
    ours, theirs = drawn()
    theirs[0, 5] = theirs[3, 21] = 4.0 + theirs.max()
    scored, every = of_drafted(), wanted(theirs, VOCABULARY)
    p = theirs.softmax(-1)[:, DRAFTED]
    q = ours[:, DRAFTED].softmax(-1)
    places = {token: place for place, token in enumerate(DRAFTED.tolist())}
    logs = [
        -float(q[row, places[token]].log()) if token in places else 0.0
        for row, token in enumerate(theirs.argmax(-1).tolist())
    ]
    assert 0 < sum(map(bool, logs)) < ROWS
    accepted = torch.minimum(p, q).sum(-1).mean()
    torch.testing.assert_close(
        draft_loss(by_id(ours, scored), every, scored, False),
        CE * sum(logs) / ROWS + VARIATION * (1 - accepted),
    )
    few = wanted(theirs, 5)
    best_p = few.scores.exp()
    best_q = torch.zeros(ROWS, VOCABULARY)
    best_q[:, DRAFTED] = q
    best_q = best_q.gather(-1, few.best)
    known = torch.minimum(best_p, best_q).sum(-1)
    rest = torch.minimum(1 - best_p.sum(-1), 1 - best_q.sum(-1))
    torch.testing.assert_close(
        draft_loss(by_id(ours, scored), few, scored, False),
        CE * sum(logs) / ROWS + VARIATION * (1 - known - rest).mean(),
    )
    share = p / p.sum(-1, keepdim=True)
    divergence = (share * (share.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(draft_loss(by_id(ours, scored), every, scored, True), divergence)


def test_a_host_that_says_none_of_them_teaches_nothing() -> None:
    ours, theirs = drawn()
    theirs[:, DRAFTED] = -40.0
    logits = by_id(ours, of_drafted()).requires_grad_()
    for cold in (True, False):
        loss = draft_loss(logits, wanted(theirs, 5), of_drafted(), cold)
        assert torch.isfinite(loss)
        (slope,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-3, rtol=0)


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


def test_sureness_learns_the_chance_of_acceptance() -> None:
    """Its loss is least at 1 - total variation, and tells the draft nothing."""
    ours, theirs = drawn()
    scored, given = whole(VOCABULARY), wanted(theirs, VOCABULARY)
    p, q = theirs.softmax(-1), ours.softmax(-1)
    chance = torch.minimum(p, q).sum(-1)
    logits = by_id(ours, scored).requires_grad_()
    for cold in (True, False):
        sure = torch.logit(chance).requires_grad_()
        (plain,) = torch.autograd.grad(draft_loss(logits, given, scored, cold), logits)
        loss = draft_loss(logits, given, scored, cold, sure)
        mine, of_logits = torch.autograd.grad(loss, (sure, logits))
        torch.testing.assert_close(mine, torch.zeros_like(mine), rtol=0, atol=1e-6)
        torch.testing.assert_close(of_logits, plain)
        added = loss - draft_loss(logits, given, scored, cold)
        entropy = -(chance * chance.log() + (1 - chance) * (1 - chance).log()).mean()
        torch.testing.assert_close(added, entropy)
