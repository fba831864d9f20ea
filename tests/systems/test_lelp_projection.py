"""Projections of embeddings: NumPy by hand, planted subclasses, rotations, what no softmax can see, and equivariance."""

import numpy as np
import pytest
import torch

from oracles import subclass_coordinates_by_hand
from sanov.core.errors import InputError
from sanov.subspaces import hadamard, orthogonal
from sanov.systems.lelp import largest_subclasses, project

NAMES = ("even", "odd")


def drawn(rows=120, width=9, classes=2, seed=0):
    source = np.random.default_rng(seed)
    members = np.arange(rows) % classes
    mixing = source.standard_normal((classes, width, width)) * np.linspace(2, 0.3, width)
    embeddings = np.einsum("nd,nde->ne", source.standard_normal((rows, width)), mixing[members]) + members[:, None]
    return embeddings, members, source.standard_normal((width, classes))


def turn(width, seed=0):
    return orthogonal(width, torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize("subclasses", [1, 2, 4])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_coordinates_are_those_by_hand(subclasses, rotation):
    embeddings, members, head = drawn()
    found = project(embeddings, members, NAMES, subclasses=subclasses, head=head, rotation=rotation)
    q = np.eye(subclasses) if rotation == "none" else hadamard(subclasses).numpy()
    expected = subclass_coordinates_by_hand(embeddings, members, head, subclasses, q)
    np.testing.assert_allclose(found.coordinates(embeddings), expected, atol=1e-9)


def test_without_the_null_space_step():
    embeddings, members, _ = drawn()
    found = project(embeddings, members, NAMES, subclasses=2, rotation="none")
    expected = subclass_coordinates_by_hand(embeddings, members, None, 2, np.eye(2))
    np.testing.assert_allclose(found.coordinates(embeddings), expected, atol=1e-9)


@pytest.mark.parametrize("rotation", ["random", "hadamard", "none", "rescale"])
@pytest.mark.parametrize("directions", ["principal", "random"])
def test_the_head_sees_nothing_of_the_directions(rotation, directions):
    embeddings, members, head = drawn()
    found = project(
        embeddings, members, NAMES, subclasses=4, head=head, rotation=rotation, directions=directions, scale=False
    )
    np.testing.assert_allclose(np.einsum("dc,kds->kcs", head, found.directions), 0, atol=1e-10)


def test_centring_the_head_takes_out_its_differences_alone():
    embeddings, members, head = drawn(classes=3, rows=90)
    names = ("a", "b", "c")
    found = project(embeddings, members, names, subclasses=2, head=head, center_head=True)
    differences = head - head.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(np.einsum("dc,kds->kcs", differences, found.directions), 0, atol=1e-10)
    assert np.abs(np.einsum("d,kds->ks", head.mean(axis=1), found.directions)).max() > 1e-3
    assert largest_subclasses(embeddings, members, names, head=head).number == 9 - 3
    assert largest_subclasses(embeddings, members, names, head=head, center_head=True).number == 9 - 2


@pytest.mark.parametrize("rotation", ["random", "hadamard", "none"])
def test_equivariance_under_rotations_of_the_embedding(rotation):
    """Of 100 random cases none may change: a rule on loadings instead of scores changes 90."""
    for seed in range(100):
        embeddings, members, head = drawn(rows=40, width=6, seed=seed)
        r = turn(6, seed)
        plain = project(
            embeddings, members, NAMES, subclasses=3 if rotation != "hadamard" else 4, head=head, rotation=rotation
        )
        turned = project(
            embeddings @ r,
            members,
            NAMES,
            subclasses=3 if rotation != "hadamard" else 4,
            head=r.T @ head,
            rotation=rotation,
        )
        np.testing.assert_allclose(
            turned.log_conditional(embeddings @ r, 0.3), plain.log_conditional(embeddings, 0.3), atol=1e-6
        )


def test_classes_may_be_named_in_any_order_and_rows_too():
    embeddings, members, head = drawn()
    plain = project(embeddings, members, NAMES, subclasses=4, head=head, rotation="hadamard").coordinates(embeddings)
    other = project(embeddings, 1 - members, NAMES[::-1], subclasses=4, head=head[:, ::-1], rotation="hadamard")
    np.testing.assert_allclose(other.coordinates(embeddings), plain[:, ::-1], atol=1e-9)
    order = np.random.default_rng(1).permutation(len(members))
    shuffled = project(embeddings[order], members[order], NAMES, subclasses=4, head=head, rotation="hadamard")
    np.testing.assert_allclose(shuffled.coordinates(embeddings), plain, atol=1e-9)
    one_by_one = np.concatenate([shuffled.coordinates(row[None]) for row in embeddings[:5]])
    np.testing.assert_allclose(one_by_one, plain[:5], atol=1e-12)


def with_variances(variances, rows=4000):
    """One class whose principal variances are exactly these, and another like it."""
    source = np.random.default_rng(0)
    white = source.standard_normal((rows, len(variances)))
    white -= white.mean(axis=0)
    white = np.linalg.qr(white)[0] * np.sqrt(rows)
    embeddings = white * np.sqrt(variances)
    return np.concatenate([embeddings, embeddings]), np.repeat([0, 1], rows)


def test_the_hadamard_rotation_equalises_variances_and_keeps_the_first_component_visible():
    variances = np.array([9.0, 4.0, 1.0, 0.25])
    embeddings, members = with_variances(variances)
    found = project(embeddings, members, NAMES, subclasses=4, rotation="hadamard", scale=False)
    z = found.coordinates(embeddings)[:4000, 0]
    np.testing.assert_allclose(z.var(axis=0), 3.5625, rtol=1e-9)
    assert (z - z.mean(axis=1, keepdims=True)).var(axis=0).sum() == pytest.approx(14.0)
    assert found.report[0].visible == pytest.approx(14.0 / 14.25)
    first = embeddings[:4000, 0]
    seen = z - z.mean(axis=1, keepdims=True)
    assert np.linalg.lstsq(seen, first, rcond=None)[1] == pytest.approx(0, abs=1e-6)


def test_random_rotations_equalise_variances_on_average():
    """The mean over draws of each variance is tr/S, and of what a softmax sees tr (S-1)/S; the trace is always kept."""
    variances = np.array([9.0, 4.0, 1.0, 0.25])
    embeddings, members = with_variances(variances, rows=50)
    draws = [project(embeddings, members, NAMES, subclasses=4, seed=seed, scale=False) for seed in range(500)]
    z = np.stack([draw.coordinates(embeddings)[:50, 0] for draw in draws])
    spread = z.var(axis=1)
    np.testing.assert_allclose(spread.sum(axis=1), 14.25, rtol=1e-9)
    error = spread.std(axis=0) / np.sqrt(500)
    assert (np.abs(spread.mean(axis=0) - 3.5625) < 6 * error).all()
    visible = np.array([draw.report[0].visible * 14.25 for draw in draws])
    assert abs(visible.mean() - 14.25 * 3 / 4) < 6 * visible.std() / np.sqrt(500)
    assert 5.25 - 1e-9 < visible.min() < visible.max() < 14.0 + 1e-9


def test_rescaling_gives_every_direction_the_same_variance():
    embeddings, members = with_variances(np.array([9.0, 4.0, 1.0, 0.25]))
    z = project(embeddings, members, NAMES, subclasses=4, rotation="rescale").coordinates(embeddings)
    np.testing.assert_allclose(z[:4000, 0].var(axis=0), 1.0, rtol=1e-9)


def planted(seed=0, rows=1000):
    """Class at +-2 on the first axis, which the head reads; its halves at +-3 on the second."""
    source = np.random.default_rng(seed)
    members, half = source.integers(2, size=rows), source.integers(2, size=rows)
    embeddings = 0.1 * source.standard_normal((rows, 4))
    embeddings[:, 0] += 4 * members - 2
    embeddings[:, 1] += 6 * half - 3
    head = np.zeros((4, 2))
    head[0] = [-1, 1]
    return embeddings, members, half, head


def recovered(projection, embeddings, members, half):
    """Share of rows on the right side of the split, the better way round for each class."""
    guess = projection.coordinates(embeddings)[np.arange(len(members)), members].argmax(axis=1)
    share = [(guess[members == c] == half[members == c]).mean() for c in (0, 1)]
    return np.mean([max(x, 1 - x) for x in share])


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_planted_subclasses_are_recovered(rotation):
    embeddings, members, half, head = planted()
    found = project(embeddings, members, NAMES, subclasses=2, head=head, rotation=rotation)
    assert recovered(found, embeddings, members, half) == 1.0


def test_a_random_rotation_recovers_them_nearly_always():
    """At least 99 % of rows in 96 % of draws, as measured for the method; here within five standard errors of that."""
    embeddings, members, half, head = planted(rows=400)
    shares = [
        recovered(project(embeddings, members, NAMES, subclasses=2, head=head, seed=s), embeddings, members, half)
        for s in range(100)
    ]
    assert np.mean(np.array(shares) > 0.99) > 0.96 - 5 * np.sqrt(0.96 * 0.04 / 100)


def test_the_wrong_hadamard_rotation_loses_the_split(monkeypatch):
    """With the constant row on the first component the softmax is blind to the planted split."""
    from sanov.systems.lelp import projection as module

    monkeypatch.setattr(module, "hadamard", lambda k: hadamard(k).flip(0))
    embeddings, members, half, head = planted()
    found = project(embeddings, members, NAMES, subclasses=2, head=head, rotation="hadamard")
    assert recovered(found, embeddings, members, half) < 0.6


# -- guards -----------------------------------------------------------------------------------------------------------


def test_one_subclass_too_many_is_refused_with_the_largest_that_fits():
    embeddings, members, head = drawn()
    assert largest_subclasses(embeddings, members, NAMES, head=head).number == 7
    project(embeddings, members, NAMES, subclasses=7, head=head)
    with pytest.raises(InputError, match=r"class 'even': its 60 embeddings vary in 7 .* subclasses = 8\. Set .* to 7"):
        project(embeddings, members, NAMES, subclasses=8, head=head)


def test_what_allows_no_more_subclasses_is_named():
    embeddings, members, head = drawn()

    def told(embeddings, members, head=head):
        return largest_subclasses(embeddings, members, NAMES, head=head)

    width = embeddings.shape[1]
    assert told(embeddings, members) == (7, f"the embeddings have {width} columns, of which the teacher's head reads 2")
    assert told(embeddings, members, None) == (width, f"the embeddings have {width} columns")
    few = np.sort(np.r_[np.flatnonzero(members == 0), np.flatnonzero(members == 1)[:4]])
    assert told(embeddings[few], members[few]) == (
        3,
        "class 'odd' has 4 rows to learn from, and there must be fewer subclasses",
    )
    flat = np.where((members == 0)[:, None] & (np.arange(width) > 4), 0.0, embeddings)
    assert told(flat, members, None) == (5, "the 60 embeddings of class 'even' vary in 5 directions")
    same = np.where((members == 0)[:, None], 1.0, embeddings)
    assert told(same, members).number == 0
    assert told(same, members).reason == (
        "the 60 embeddings of class 'even' vary in 0 directions once what the teacher's head reads is out"
    )
    assert told(embeddings[members == 0], members[members == 0]) == (0, "class 'odd' has 0 rows to learn from")


def test_duplicated_rows_lower_the_rank():
    embeddings, members, head = drawn(rows=8)
    embeddings, members = np.repeat(embeddings, 10, axis=0), np.repeat(members, 10)
    assert largest_subclasses(embeddings, members, NAMES, head=head).number == 3
    with pytest.raises(InputError, match="40 embeddings vary in 3 directions"):
        project(embeddings, members, NAMES, subclasses=4, head=head)


def test_float32_embeddings_have_no_structure_in_their_rounding():
    """Embeddings along the head alone: what is left after the projection is rounding."""
    _, members, head = drawn()
    embeddings = (np.random.default_rng(1).standard_normal((120, 2)) @ head.T * 50).astype(np.float32)
    assert largest_subclasses(embeddings, members, NAMES, head=head.astype(np.float32)).number == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e, m: (e, np.zeros_like(m)), r"class 'odd': does not occur; expected at least 5 rows for 4 subclasses"),
        (lambda e, m: (e[:8], m[:8]), r"class 'even': has 4 rows; expected at least 5 rows"),
        (
            lambda e, m: (np.where(m[:, None] == 1, 1.0, e), m),
            r"class 'odd': all 60 embeddings are equal .*zero variance",
        ),
        (
            lambda e, m: (np.where(np.arange(120)[:, None] == 6, np.nan, e), m),
            r"NaN .* in row 7 .*, 1 such rows in all",
        ),
    ],
)
def test_bad_embeddings(change, told):
    embeddings, members, head = drawn()
    embeddings, members = change(embeddings, members)
    with pytest.raises(InputError, match=told):
        project(embeddings, members, NAMES, subclasses=4, head=head)


def test_a_head_that_does_not_fit():
    embeddings, members, head = drawn()
    with pytest.raises(InputError, match=r"shape \[120, 9\] and a head of shape \[2, 9\].* looks transposed"):
        project(embeddings, members, NAMES, subclasses=2, head=head.T)


def test_rows_of_no_class_are_told():
    embeddings, members, head = drawn()
    with pytest.raises(InputError, match="the class of row 3 is 7; expected one class a row, 0 to 1"):
        project(embeddings, np.where(np.arange(120) == 2, 7, members), NAMES, subclasses=2, head=head)
    with pytest.raises(InputError, match="120 embeddings and classes of 119 rows"):
        project(embeddings, members[:-1], NAMES, subclasses=2, head=head)


def test_hadamard_of_three():
    embeddings, members, head = drawn()
    with pytest.raises(InputError, match="2 or 4"):
        project(embeddings, members, NAMES, subclasses=3, head=head, rotation="hadamard")
