"""The folder of a fit: what it holds, what replaces it, and what a run that was killed or refused leaves of it."""

import json

import pytest
import torch

from learning.distil_toy import SHORT, fit, table, weights
from sanov.core.errors import InputError, SanovWarning
from sanov.learning.components import Component, label_loss
from sanov.learning.distil import Validation
from sanov.learning.students import Fitted


def test_folders_that_hold_no_student(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Fitted.load(tmp_path / "none")
    with pytest.raises(InputError, match="no finished student"):
        Fitted.load(tmp_path)
    fitted = fit(table())
    fitted.save(tmp_path / "student")
    (tmp_path / "student" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="weights are not those"):
        Fitted.load(tmp_path / "student")
    tree = json.loads((tmp_path / "student" / "config.json").read_text())
    fitted.save(tmp_path / "student")
    (tmp_path / "student" / "config.json").write_text(json.dumps(tree | {"classes": ["a", "b"]}))
    with pytest.raises(InputError, match="is damaged"):
        Fitted.load(tmp_path / "student")


def test_the_folder_of_a_fit(tmp_path):
    fitted = fit(table(), out=tmp_path / "student", validation=Validation(share=0.2))
    assert torch.equal(weights(Fitted.load(tmp_path / "student")), weights(fitted))
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert {"model.safetensors", "config.json", "history.csv"} <= names
    again = fit(table(), out=tmp_path / "student", validation=Validation(share=0.2), resume=True)
    assert torch.equal(weights(again), weights(fitted))


def test_a_folder_can_be_used_again(tmp_path):
    """A finished fit is replaced, also by one of other data; one that was stopped is resumed with the same data only."""
    fit(table(), out=tmp_path / "student")
    fit(table(), out=tmp_path / "student")  # the same once more: there is nothing to tell
    with pytest.warns(
        SanovWarning, match=r"student held a finished student of other data and other seed, which is replaced"
    ):
        other = fit(table(seed=1), out=tmp_path / "student", seed=4)
    assert torch.equal(weights(Fitted.load(tmp_path / "student")), weights(other))
    with pytest.raises(InputError, match="had other data"):
        fit(table(), out=tmp_path / "student", seed=4, resume=True)
    with pytest.raises(InputError, match="had other options and other seed"):
        fit(table(seed=1), out=tmp_path / "student", resume=True, config={"alpha": 1.0}, seed=3)
    assert torch.equal(weights(Fitted.load(tmp_path / "student")), weights(other))


class Killed(Exception):
    pass


@pytest.mark.filterwarnings("ignore:there is nothing to resume")  # the last is a run that was never begun
@pytest.mark.parametrize("kill_at", [5, 9, 14])
def test_a_killed_fit_resumes_to_the_same_bits(tmp_path, kill_at):
    """Also where the best weights were kept before the kill, and after the checkpoint that is resumed from."""
    data = table(64)
    training = SHORT.model_copy(update={"epochs": 4, "checkpoint_every": 3, "evaluate_every": 2})
    options = {"training": training, "validation": Validation(share=0.25), "diagnose": False}
    calls = []

    def killing(student_logits, rows):
        calls.append(1)
        if len(calls) == kill_at:
            raise Killed
        return label_loss().loss(student_logits, rows)

    component = Component("label", killing, counts="labelled")
    whole = fit(data, label_loss(), out=tmp_path / "whole", **options)
    if kill_at <= 4 * 3:
        with pytest.raises(Killed):
            fit(data, component, out=tmp_path / "killed", **options)
        assert not (tmp_path / "killed" / "config.json").exists()
    again = fit(data, label_loss(), out=tmp_path / "killed", resume=True, **options)
    assert torch.equal(weights(again), weights(whole))
    assert again.history.drop("seconds", strict=False).equals(whole.history.drop("seconds", strict=False))
    assert again.results == whole.results


def stopped(data, folder, at=6, **options):
    """A fit that is killed after its first checkpoint."""
    calls = []

    def killing(student_logits, rows):
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return label_loss().loss(student_logits, rows)

    with pytest.raises(Killed):
        fit(data, Component("label", killing, counts="labelled"), out=folder, training=CHECKED, **options)


CHECKED = SHORT.model_copy(update={"epochs": 4, "checkpoint_every": 3, "evaluate_every": 2})


def test_a_refused_fit_leaves_the_stopped_one_as_it_was(tmp_path):
    options = {"validation": Validation(share=0.25), "diagnose": False, "config": {"of": "one"}}
    stopped(table(64), tmp_path / "student", **options)
    with pytest.raises(InputError, match="holds an unfinished run"):
        fit(table(64), label_loss(), out=tmp_path / "student", training=CHECKED, config={"of": "another"})
    again = fit(table(64), label_loss(), out=tmp_path / "student", training=CHECKED, resume=True, **options)
    assert torch.equal(weights(again), weights(fit(table(64), label_loss(), training=CHECKED, **options)))


def test_nothing_of_a_finished_fit_is_taken_for_the_next(tmp_path):
    """Neither its best weights, nor its student while the next is unfinished, nor its seal by a third."""
    options = {"validation": Validation(share=0.25), "diagnose": False}
    fit(table(64), label_loss(), out=tmp_path / "student", training=CHECKED, **options)
    other = table(64, seed=1)
    with pytest.warns(SanovWarning, match="finished student of other data, which is replaced"):
        stopped(other, tmp_path / "student", **options)
    with pytest.raises(InputError, match="no finished student"):
        Fitted.load(tmp_path / "student")
    with pytest.raises(InputError, match="holds an unfinished run"):
        fit(table(64), label_loss(), out=tmp_path / "student", training=CHECKED, **options)
    again = fit(other, label_loss(), out=tmp_path / "student", training=CHECKED, resume=True, **options)
    assert torch.equal(weights(again), weights(fit(other, label_loss(), training=CHECKED, **options)))
