"""The promise: step 3 drops rows by their rank in length, 59.5 % stay and they are longer.

`python -m pytest tests/test_drop_short.py`
"""

import random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_lengthen.filters import MIN_ROWS_TO_DROP, drop_short, keep_probabilities

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=40)
# The integral of max(0, 1 - 2 r^3) over 0..1. With z = 0.5^(1/3) its zero:
# z - z^4 / 2 = z - z / 4 = 0.75 z = 0.5953
KEPT_SHARE = 0.75 * 0.5 ** (1 / 3)


def test_probabilities_follow_the_rank_as_worked_by_hand():
    # Ascending 100 200 300 400 500, n = 5: rank = 1 - index / 5
    #   100: 1.0 -> 1 - 2 x 1.000 = -1 -> 0      400: 0.4 -> 1 - 2 x 0.064 = 0.872
    #   200: 0.8 -> 1 - 2 x 0.512 < 0  -> 0      500: 0.2 -> 1 - 2 x 0.008 = 0.984
    #   300: 0.6 -> 1 - 2 x 0.216 = 0.568
    worked = [0.568, 0.984, 0, 0.872, 0]
    assert keep_probabilities([300, 500, 100, 400, 200]) == pytest.approx(worked)


def test_ties_share_their_middle_rank_as_worked_by_hand():
    # Ascending 10 20 20 30, n = 4; the two 20 at indices 1 and 2 share 1.5: rank = 1 - 1.5 / 4
    #   = 0.625, 0.625^3 = 0.244140625 -> 0.51171875.  30: rank 0.25 -> 1 - 2 / 64 = 0.96875
    assert keep_probabilities([20, 30, 20, 10]) == pytest.approx(
        [0.51171875, 0.96875, 0.51171875, 0]
    )


def test_59_and_a_half_percent_of_20_000_rows_stay_and_their_mean_length_rises():
    luck = random.Random(1)
    lengths = [int(luck.lognormvariate(8, 0.5)) for _ in range(20_000)]
    kept = drop_short(lengths, random.Random(2))
    # Four standard deviations of 20,000 draws are below 4 x sqrt(0.25 / 20000) = 1.4 %.
    assert mean(kept) == pytest.approx(KEPT_SHARE, abs=0.014)
    assert mean(n for n, stays in zip(lengths, kept, strict=True) if stays) > 1.2 * mean(lengths)


def test_the_expected_share_is_the_integral():
    assert mean(keep_probabilities(range(20_000))) == pytest.approx(KEPT_SHARE, abs=1e-4)
    assert pytest.approx(0.595, abs=5e-4) == KEPT_SHARE


def test_the_longest_row_nearly_always_stays_and_the_shortest_fifth_never():
    for seed in range(20):
        kept = drop_short(range(1000), random.Random(seed))
        # Rows below rank 0.5^(1/3) = 0.794 from the top have no chance: indices up to 206.
        assert not any(kept[:206])
        assert all(kept[-20:])


@given(LENGTHS)
def test_a_longer_row_is_never_less_likely_and_equal_rows_are_equally_likely(lengths):
    rows = sorted(zip(lengths, keep_probabilities(lengths), strict=True))
    assert all(0 <= probability < 1 for _, probability in rows)
    for (length, probability), (longer, its_probability) in zip(rows, rows[1:], strict=False):
        assert its_probability >= probability
        if length == longer:
            assert its_probability == probability


@given(LENGTHS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_rows_chance(lengths, luck):
    order = list(range(len(lengths)))
    luck.shuffle(order)
    in_order = keep_probabilities(lengths)
    shuffled = keep_probabilities([lengths[n] for n in order])
    assert shuffled == [in_order[n] for n in order]


@given(LENGTHS, st.integers(1, 5), st.integers(0, 9))
def test_only_the_order_of_lengths_matters_not_their_size(lengths, factor, offset):
    stretched = [length * factor + offset for length in lengths]
    assert keep_probabilities(stretched) == keep_probabilities(lengths)


@given(LENGTHS, st.integers())
def test_the_same_seed_drops_the_same_rows(lengths, seed):
    kept = drop_short(lengths, random.Random(seed))
    assert kept == drop_short(lengths, random.Random(seed))
    assert len(kept) == len(lengths)


def test_every_row_draws_once_in_the_order_of_the_rows():
    lengths, seed = [500, 100, 400, 300, 300, 200], 7
    luck = random.Random(seed)
    expected = [luck.random() < probability for probability in keep_probabilities(lengths)]
    rng = random.Random(seed)
    assert drop_short(lengths, rng) == expected
    assert rng.getstate() == luck.getstate()


@pytest.mark.parametrize("rows", range(MIN_ROWS_TO_DROP))
def test_fewer_than_five_rows_all_stay(rows):
    for seed in range(20):
        assert drop_short(list(range(rows)), random.Random(seed)) == [True] * rows


def test_five_rows_are_enough_to_drop():
    assert MIN_ROWS_TO_DROP == 5
    assert not drop_short([1, 2, 3, 4, 5], random.Random(0))[0]  # the shortest: probability 0


def test_equal_lengths_share_one_chance_near_three_quarters():
    # Middle index 999 / 2 of n = 1000: rank = 1 - 0.4995 = 0.5005 -> 1 - 2 x 0.5005^3 = 0.7492
    assert keep_probabilities([7] * 1000) == pytest.approx([0.7492] * 1000, abs=1e-4)
