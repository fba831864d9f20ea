"""Divisions of classes that come from elsewhere: scikit-learn's k-means, planted halves, known labels, chance."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

from sanov.baselines import subclasses
from sanov.baselines.subclasses import Config, contrast, given_division, kmeans_division, random_division
from sanov.cli import app
from sanov.core.errors import InputError
from systems.lelp_toy import table

SMALL = {"training": {"epochs": 6, "batch_size": 32, "learning_rate": 0.02}, "student": {"width": 8}}


def config(**options):
    return Config.model_validate({**SMALL, **options})


def test_kmeans_is_that_of_scikit_learn_and_divides_every_class():
    data = table()
    division = np.exp(kmeans_division(data.embeddings, data.labels, 2, 2, seed=3))
    assert division.shape == (len(data), 2, 2)
    np.testing.assert_allclose(division.sum(axis=2), 1)
    for c in (0, 1):
        own = KMeans(2, n_init=4, random_state=3).fit(data.embeddings[data.labels == c])
        assert np.array_equal(division[:, c].argmax(axis=1), own.predict(data.embeddings))
    own = division[np.arange(len(data)), data.labels].argmax(axis=1)
    halves = [name[-1] for name in data.subclasses]
    for c in (0, 1):
        rows = data.labels == c
        assert adjusted_rand_score(np.array(halves)[rows], own[rows]) == 1


def test_kmeans_in_the_null_space_does_not_see_the_head():
    """The head's direction is blown up a thousandfold: clusters follow it unless it is taken out."""
    data = table()
    blown = data.embeddings * np.array([1000.0, 1, 1, 1])
    seen = kmeans_division(blown, data.labels, 2, 2, seed=0)
    unseen = kmeans_division(blown, data.labels, 2, 2, head=data.head.weight, seed=0)
    halves = np.array([name[-1] for name in data.subclasses])
    rows = data.labels == 0
    scores = [adjusted_rand_score(halves[rows], d[rows, 0].argmax(axis=1)) for d in (seen, unseen)]
    assert scores[0] < 0.2
    assert scores[1] == 1


def test_a_random_division_is_even_and_knows_nothing():
    division = np.exp(random_division(6000, 2, 3, seed=0))
    assert set(np.unique(division)) == {0.0, 1.0}
    share = division.mean(axis=0)
    assert np.abs(share - 1 / 3).max() < 6 * math.sqrt(2 / 9 / 6000)
    assert not np.array_equal(division[:, 0], division[:, 1])
    assert np.array_equal(np.exp(random_division(6000, 2, 3, seed=0)), division)


def test_known_subclasses_are_certain_for_a_rows_own_class_and_even_for_others():
    members, fine = np.array([0, 0, 1, 1, 1]), np.array([4, 7, 5, 6, 9])
    found = np.exp(given_division(members, fine, 2))
    assert found[:, 0].tolist() == [[1, 0, 0], [0, 1, 0], *[[0.5, 0.5, 0]] * 3]
    np.testing.assert_allclose(found[:, 1], [*[[1 / 3] * 3] * 2, [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_contrast_is_largest_where_all_rows_are_alike():
    generator = torch.Generator().manual_seed(0)
    apart = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    by_hand = (apart - apart.mean(dim=0)).numpy()
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    expected = np.mean(np.log(np.exp(by_hand @ by_hand.T).sum(axis=1))) - 1 - math.log(64)
    assert contrast(apart).item() == pytest.approx(expected, rel=1e-12)
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert contrast(two).item() == pytest.approx(math.log((math.e + 1 / math.e) / 2) - 1)
    assert contrast(two).item() < 0


@pytest.mark.parametrize("partition", ["kmeans", "retrained", "given", "random"])
def test_a_student_learns_under_every_partition(partition):
    data = table()
    options = config(partition=partition, subclasses=2, retrained={"width": 16})
    fitted = subclasses.fit(data, options)
    assert fitted.subclasses == 2
    answer = subclasses.apply(data, options, fitted=fitted)
    assert answer.values["accuracy"] > 0.9
    assert answer.system == "subclasses"


def test_a_teacher_trained_anew_gives_its_own_probabilities():
    """Its logits and division together are the softmax of its outputs at tau, over all subclasses."""
    data, options = table(), config(partition="retrained", subclasses=3, temperature=2.5, retrained={"width": 16})
    logits, division = subclasses.retrained_division(data, options, seed=1)
    joint = torch.log_softmax(torch.from_numpy(logits) / 2.5, dim=-1)[..., None] + torch.from_numpy(division)
    np.testing.assert_allclose(joint.exp().sum(dim=(1, 2)), 1, atol=1e-9)
    assert (logits.argmax(axis=1) == data.labels).mean() > 0.95
    plain = subclasses.retrained_division(
        data, config(partition="retrained", subclasses=3, retrained={"width": 16}, temperature=1.0), seed=1
    )
    at_one = torch.log_softmax(torch.from_numpy(plain[0]), dim=-1)[..., None] + torch.from_numpy(plain[1])
    np.testing.assert_allclose(joint, torch.log_softmax((at_one / 2.5).flatten(1), dim=-1).view_as(joint), atol=1e-9)


def test_a_student_does_not_begin_with_its_retrained_teachers_weights(monkeypatch):
    """The same seed would fill both first layers with the same numbers."""
    seeds = []
    original = subclasses.distil.fit
    monkeypatch.setattr(subclasses.distil, "fit", lambda *a, **o: (seeds.append(o["seed"]), original(*a, **o))[1])
    subclasses.fit(table(), config(partition="retrained", subclasses=2, retrained={"width": 8}), seed=4)
    assert len(set(seeds)) == 2


@pytest.mark.parametrize(
    ("options", "change", "told"),
    [
        ({"partition": "given"}, {"subclasses": None}, r"no column of subclasses.*map\.subclass"),
        ({"partition": "given"}, {"subclasses": ("a", None) * 40}, r"row 2: the subclass is missing \(40 in all\)"),
        ({"partition": "kmeans"}, {"embeddings": None, "head": None}, "no teacher embeddings"),
        ({"partition": "retrained"}, {"embeddings": None, "head": None}, "no teacher embeddings.*retrained.on=inputs"),
        ({"partition": "kmeans", "subclasses": 50}, {}, "class 0 has .* rows; expected at least 50"),
        ({"partition": "kmeans", "null_space": True}, {"head": None}, "head is not known, and null_space needs it"),
        ({"partition": "retrained"}, {"labels": None}, "72 of 72 rows have no label; expected a label in each row"),
    ],
)
def test_what_a_partition_needs(options, change, told, tmp_path):
    with pytest.raises(InputError, match=told):
        subclasses.fit(table(rows=80, **change), config(**options), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = table()
    arrays = {
        "inputs": data.inputs,
        "embeddings": data.embeddings,
        "labels": data.labels,
        "subclasses": data.subclasses,
    }
    np.savez("teacher.npz", head_weight=data.head.weight, head_bias=data.head.bias, **arrays)
    words = ["fit", "subclasses", "teacher.npz", "--out", "student", "partition=given", "training.epochs=2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "2 subclasses each" in done.output
    done = CliRunner().invoke(app, ["apply", "subclasses", "teacher.npz", "--fitted", "student"])
    assert done.exit_code == 0, done.output
