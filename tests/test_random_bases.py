"""Random bases: known answers, the same numbers whatever the way, and fingerprints that differ where they must."""

import math

import numpy as np
import pytest
import torch

from oracles import basis_by_integers, philox_by_integers
from sanov.core.errors import InputError
from sanov.random_bases import counter_uniform, fingerprint, philox, random_bases

KNOWN = [  # of the authors of the generator
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
LAYOUT = [  # seed, stream, number of the basis, first values: of the specification
    (0, 1, 0, [-0.6421371698, -0.8493382931, 0.9763450623, 0.2697651386, 0.8228563070, -0.3668130636, -0.2240760326]),
    (0, 1, 1, [0.7411247492, 0.1179699898, 0.8806464672, -0.1161494255]),
    (0, 2, 0, [0.7280203104, 0.3590583801, 0.8044141531, 0.6539547443]),
    (0, 0, 0, [-0.2019071579, 0.7610403299, 0.4714255333, 0.2109636068]),
    (1, 1, 0, [-0.8555929661, -0.7654891014, -0.4334665537, -0.9201292992]),
    (2**40 + 3, 1, 0, [-0.2281594276, 0.2130115032, -0.9869647026, 0.6211191416]),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_philox(counter, key, words):
    found = philox([torch.tensor([word]) for word in counter], key)
    assert " ".join(f"{int(word):08x}" for word in found) == words
    assert " ".join(f"{word:08x}" for word in philox_by_integers(counter, key)) == words


@pytest.mark.parametrize(("seed", "stream", "number", "values"), LAYOUT)
def test_known_answers_of_the_layout(seed, stream, number, values):
    found = counter_uniform(seed, stream, (1, len(values)), first=number)
    np.testing.assert_allclose(found[0].double(), values, atol=5e-11)


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**64 - 1])
def test_bases_are_those_of_whole_numbers(seed):
    found = counter_uniform(seed, 2, (3, 5, 3), first=4)
    expected = [basis_by_integers(seed, 2, 4 + place, 15).reshape(5, 3) for place in range(3)]
    np.testing.assert_array_equal(found.numpy(), np.array(expected, dtype=np.float32))


def test_the_same_numbers_in_any_chunking():
    whole = random_bases(5, 1, (40, 7, 999))  # more blocks than are made at a time
    for size in (1, 16, 33):
        parts = [random_bases(5, 1, (min(size, 40 - at), 7, 999), first=at) for at in range(0, 40, size)]
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("law", ["uniform", "rademacher", "sparse"])
def test_moments(law):
    values = random_bases(3, 1, (1, 1_000_000), law=law).double()
    assert abs(values.mean()) < 0.003
    assert abs(values.var() - 1 / 3) < 0.002
    ties = values[0, :-1] * values[0, 1:]  # of neighbours: independent ones have the mean 0 and the variance 1/9
    assert abs(ties.mean()) < 4 / 3 / 1000


def test_values_of_the_other_laws():
    assert random_bases(3, 1, (1, 999), law="rademacher").abs().unique().tolist() == [pytest.approx(1 / math.sqrt(3))]
    sparse = random_bases(3, 1, (1, 100_000), law="sparse")
    assert abs((sparse != 0).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 100_000)


def test_no_global_state_is_touched():
    before = torch.random.get_rng_state()
    counter_uniform(0, 1, (20, 30))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_fingerprint_tells_every_difference():
    bases = {1: (40, 3, 8), 2: (16, 5, 3)}
    known = fingerprint(9, bases)
    others = [
        fingerprint(10, bases),
        fingerprint(9 + 2**32, bases),
        fingerprint(9, {**bases, 1: (39, 3, 8)}),
        fingerprint(9, {**bases, 1: (40, 8, 3)}),
        fingerprint(9, bases, "rademacher"),
    ]
    assert fingerprint(9, bases) == known
    assert len({known, *others}) == 6


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match="0 to 2"):
        counter_uniform(seed, 0, (1, 1))
