import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.config import BOUNDS, cache_dir, check_bound, check_bounds
from nas.errors import InvalidInputError


@pytest.mark.parametrize("value", [0, -1, -0.0, math.nan, math.inf, -math.inf, 600_000.1, True, "10", None])
def test_a_budget_that_is_no_budget_is_refused(value):
    with pytest.raises(InvalidInputError, match="latency_ms must be a number above 0 and at most 600000"):
        check_bound("latency_ms", value)


@pytest.mark.parametrize("value", [1e-9, 10, 10.5, 600_000])
def test_a_budget_that_is_one_passes(value):
    check_bound("latency_ms", value)


@given(st.sampled_from([name for name, bound in BOUNDS.items() if bound.whole]), st.integers())
def test_whole_numbers_pass_exactly_inside_their_bounds(name, value):
    inside = BOUNDS[name].lowest <= value <= BOUNDS[name].highest
    if inside:
        check_bound(name, value)
    else:
        with pytest.raises(InvalidInputError, match=f"{name} must be a whole number"):
            check_bound(name, value)


def test_a_fraction_is_no_count():
    with pytest.raises(InvalidInputError, match=r"threads must be a whole number from 1 to 1024, got 1\.5"):
        check_bounds(threads=1.5)


def test_what_was_not_given_passes():
    check_bounds(steps=None, minutes=None)


def test_an_unknown_bound_is_said_with_the_nearest_name():
    with pytest.raises(InvalidInputError, match="Did you mean 'threads'"):
        check_bound("thread", 1)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("NAS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "tiny-plm-nas"


def test_a_relative_cache_is_refused(monkeypatch):
    monkeypatch.setenv("NAS_CACHE", "cache")
    with pytest.raises(InvalidInputError, match="absolute path, got 'cache'"):
        cache_dir()
