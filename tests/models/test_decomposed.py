"""What is decomposed where it stands is the graph that torch's own decomposition gives."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from harness import meaning

from graftline.models.export import export
from graftline.models.export.export import translate

torch = pytest.importorskip("torch")


class Known(torch.nn.Module):
    """Every operator that is replaced, over sizes that are free and sizes that are not."""

    def forward(self, tokens: Any, x: Any) -> Any:
        sizes = tokens.shape
        near = (tokens > 1) & (tokens < 9) | (tokens == 3)
        left, right = (x.to(torch.float64) ** 2).float().chunk(2, -1)
        turned = torch.stack((left.square(), torch.max(left, torch.min(right, left))), -1)
        flat = turned.flatten(-2).transpose(1, 2).contiguous()
        dropped = torch.nn.functional.dropout(flat, 0.5, self.training)
        wide = dropped.transpose(1, 2).reshape(*sizes, 2, 2).transpose(2, 3)
        ones = torch.tensor([1.0, 2.0]).to(x.dtype).to(x.device)
        return wide.reshape(*sizes, 4) * near[..., None].to(x.dtype) + ones.sum()


class Written(torch.nn.Module):
    """Writes into a tensor that others read."""

    def forward(self, tokens: Any, x: Any) -> Any:
        half = x[..., :2]
        twice = x * 2
        twice[..., :2].add_(half)
        return twice + tokens[..., None]


def traced(module: Any) -> Any:
    free = {0: torch.export.Dim("B"), 1: torch.export.Dim("N")}
    given = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6, 4)
    with torch.no_grad():
        return torch.export.export(
            module.eval(), given, dynamic_shapes={"tokens": free, "x": free}, strict=False
        )


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that torch has traced a second time."""
    seen: list[Any] = []
    kind = torch.export.ExportedProgram
    real = kind.run_decompositions

    def counted(program: Any, *args: Any, **options: Any) -> Any:
        seen.append(program)
        return real(program, *args, **options)

    monkeypatch.setattr(kind, "run_decompositions", counted)
    return seen


def by_torch(program: Any, patch: pytest.MonkeyPatch) -> export.Exported:
    with patch.context() as without:
        without.setattr(export, "decomposed_in_place", nullcontext)
        return translate(program, ())


def test_known_operators_are_replaced_where_they_stand(
    anew: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_torch(traced(Known()), monkeypatch)
    assert len(anew) == 1
    found = translate(traced(Known()), ())
    assert len(anew) == 1, "torch traced it a second time"
    assert meaning(found.model) == meaning(expected.model)
    shapes = [[str(o.shape) for n in m.model.graph for o in n.outputs] for m in (found, expected)]
    assert shapes[0] == shapes[1]


def test_what_writes_in_place_is_traced_anew(anew: list[Any]) -> None:
    program = traced(Written())
    before = str(program.graph)
    translate(program, ())
    assert anew == [program]
    assert str(program.graph) == before, "it was changed before it was known"
