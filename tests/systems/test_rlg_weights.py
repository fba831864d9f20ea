"""The rule of `rlg`: affine, exact at its ends, and said no to where outputs do not mean the same."""

import math

import pytest
import torch

from sanov.core.errors import InputError, SanovWarning
from sanov.systems.rlg.weights import (
    Window,
    check_compatible,
    check_switchable,
    check_weight,
    combine,
    guided,
    needed,
    warn_of_clipping,
    weight_at,
)

generator = torch.Generator().manual_seed(0)
REF, ONE, TWO = torch.randn(3, 6, 2, 4, generator=generator)
ROWS = torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.6, 3.0])


def test_ends_are_exact_whatever_is_asked():
    """0 and 1 give back an output bit for bit, with and without the other one, also in single rows."""
    assert torch.equal(combine(REF, [ONE], [0.0]), REF)
    assert torch.equal(combine(REF, [ONE], [1.0]), ONE)
    assert torch.equal(combine(None, [ONE], [1.0]), ONE)
    assert torch.equal(combine(REF, [None], [0.0]), REF)
    by_row = combine(REF, [ONE], [ROWS])
    assert torch.equal(by_row[1], REF[1])
    assert torch.equal(by_row[3], ONE[3])


def test_released_form_is_not_exact_at_one():
    """Why the rule is not written ref + w (tuned - ref)."""
    assert not torch.equal(REF + 1.0 * (ONE - REF), ONE)


def test_mixture_is_affine_in_the_weight():
    between = 0.7 * combine(REF, [ONE], [0.0]) + 0.3 * combine(REF, [ONE], [1.0])
    torch.testing.assert_close(combine(REF, [ONE], [0.3]), between, rtol=0, atol=1e-6)
    torch.testing.assert_close(combine(REF, [ONE], [ROWS])[4], combine(REF, [ONE], [1.6])[4], rtol=0, atol=1e-6)


def test_equal_models_leave_nothing_to_weigh():
    assert torch.equal(combine(REF, [REF], [2.7]), REF)


@pytest.mark.parametrize("outer", [-0.5, 0.4, 3.0])
def test_mixtures_compose(outer):
    """Mixing the reference with a mixture multiplies the weights."""
    inner = combine(REF, [ONE], [1.6])
    torch.testing.assert_close(combine(REF, [inner], [outer]), combine(REF, [ONE], [1.6 * outer]), rtol=0, atol=2e-6)


def test_guidance_and_mixture_commute_for_one_scale():
    nothing, condition = torch.randn(2, 2, 6, 8, generator=generator, dtype=torch.float64)
    first = combine(guided(nothing[0], condition[0], 4.5), [guided(nothing[1], condition[1], 4.5)], [1.6])
    last = guided(combine(nothing[0], [nothing[1]], [1.6]), combine(condition[0], [condition[1]], [1.6]), 4.5)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-12)
    assert torch.equal(guided(nothing[0], condition[0], 1.0), condition[0])


def test_several_tuned_models_add_what_each_changes():
    expected = REF + 0.5 * (ONE - REF) - 2 * (TWO - REF)
    torch.testing.assert_close(combine(REF, [ONE, TWO], [0.5, -2.0]), expected, rtol=0, atol=2e-6)
    ends = combine(REF, [ONE, TWO], [torch.tensor([0.0, 1, 0, 1, 2, 0]), torch.tensor([0.0, 0, 1, 1, -1, 3])])
    assert torch.equal(ends[0], REF[0])
    assert torch.equal(ends[1], ONE[1])
    assert torch.equal(ends[2], TWO[2])


def test_half_precision_is_mixed_in_single():
    half = combine(REF.half(), [ONE.half()], [30.0])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, combine(REF.half().float(), [ONE.half().float()], [30.0]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("weights", "reference", "tuned"),
    [
        ([0.0], True, (False,)),
        ([1.0], False, (True,)),
        ([0.5], True, (True,)),
        ([-1.0], True, (True,)),
        ([0.0, 1.0], False, (False, True)),
        ([0.0, 0.0], True, (False, False)),
        ([0.4, 0.6], True, (True, True)),
        ([torch.zeros(3)], True, (False,)),
        ([torch.ones(3)], False, (True,)),
        ([torch.tensor([0.0, 1.0, 1.0])], True, (True,)),
    ],
)
def test_models_that_do_not_count_are_not_asked(weights, reference, tuned):
    found = needed(weights)
    assert (found.reference, found.tuned) == (reference, tuned)
    assert needed(weights, skip=False).models == 1 + len(weights)


def test_weight_follows_sigma_and_window():
    window = Window(0.8, 0.2, "reference")
    assert weight_at(lambda sigma: 2 * sigma, 0.5, window=window) == 1.0
    assert weight_at(3, 0.9, window=window) == 0.0
    assert weight_at(3, 0.1, window=Window(0.8, 0.2)) == 1.0
    assert weight_at(3, 0.8, window=window) == weight_at(3, 0.2, window=window) == 3.0
    assert torch.equal(weight_at([1.0, 2.0], 0.5, rows=2), torch.tensor([1.0, 2.0]).double())


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [math.nan, math.inf, [1.0, math.nan]])
def test_weight_that_is_no_number_is_refused(weight):
    with pytest.raises(InputError, match=r"w: the weight is (nan|inf) at sigma 0.5; expected finite"):
        weight_at(weight, 0.5)


def test_weights_of_another_number_of_rows_are_refused():
    with pytest.raises(InputError, match=r"shape \(2,\); expected a number, or one a row: shape \(3,\)"):
        check_weight([1.0, 2.0], 3)


def test_models_that_predict_other_things_are_refused():
    with pytest.raises(
        InputError, match=r"'velocity', and 'noise' in the reference; expected .*prediction type"
    ) as error:
        check_compatible({"predicts": "noise", "width": 3}, {"predicts": "velocity", "width": 3})
    assert "width" not in str(error.value)
    check_compatible({"predicts": "noise"}, {"predicts": "noise"})


def test_merged_or_absent_adapter_is_refused():
    with pytest.raises(InputError, match=r"'brush' is merged .* cannot be disabled.* Load it unmerged"):
        check_switchable(adapters=["brush"], merged=["brush"])
    with pytest.raises(InputError, match="no adapter: the policy adapter cannot be disabled"):
        check_switchable(adapters=[])
    check_switchable(adapters=["brush"])


def test_clipping_after_the_mixture_is_told():
    with pytest.warns(SanovWarning, match="mix happens before clipping; the result at w = 1.6 is not affine in w"):
        assert warn_of_clipping([0.0, 1.6])
    assert not warn_of_clipping([0.0, 1.0])
