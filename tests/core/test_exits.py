"""`--exit`: numbers of blocks, each less than the target has; what is none of that is refused."""

from __future__ import annotations

import pytest

from graftline.errors import GraftlineError
from graftline.exits import check_exits, check_needs, parse_exits, told


def test_what_is_read_is_what_is_told() -> None:
    assert parse_exits("8") == (8,)
    assert told(parse_exits("6, 12,18")) == "6,12,18"


@pytest.mark.parametrize("text", ["", "a", "8,", "-1", "1.5"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(GraftlineError, match="takes numbers of blocks joined by commas, as in"):
        parse_exits(text)


@pytest.mark.parametrize("text", ["0", "8,8", "12,6"])
def test_what_does_not_increase_is_refused(text: str) -> None:
    with pytest.raises(GraftlineError, match=f"--exit {text}: exits start at 1 and increase"):
        parse_exits(text)


@pytest.mark.parametrize(("layers", "span"), [(12, "use 1 to 11"), (1, "no room for an exit")])
def test_an_exit_outside_the_depth_is_refused(layers: int, span: str) -> None:
    with pytest.raises(GraftlineError, match=span):
        check_exits((4, 12), layers)
    check_exits((4, 12), 13)


def test_a_recipe_without_its_exits_is_refused() -> None:
    with pytest.raises(GraftlineError, match="recipe layer-skip needs an exit; add --exit 8"):
        check_needs("layer-skip", ["exit"], ())
    with pytest.raises(GraftlineError, match="recipe del chooses among exits; add --exit 6,12,18"):
        check_needs("del", ["exit", "exits"], (4,))
    check_needs("del", ["exit", "exits"], (4, 8))
