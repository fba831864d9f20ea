"""What a loss on sampled tokens follows: the fixtures that are known, and functions of users that are not right."""

import json
import subprocess
import sys

import pytest
import torch

from sanov.core.errors import InputError
from sanov.loss_checks import check_loss

LOSSES = '''
import torch

def k1(log_policy, log_teacher):
    return log_policy - log_teacher

def k2(log_policy, log_teacher):
    return ((log_policy - log_teacher) ** 2 / 2).mean()

def k3(student_log_probs, teacher_log_probs, response_mask):
    gap = teacher_log_probs - student_log_probs
    return ((gap.exp() - 1 - gap) * response_mask).sum() / response_mask.sum()

def rho_k3(log_prob, old_log_prob, teacher_log_prob):
    gap = teacher_log_prob - log_prob
    return ((log_prob - old_log_prob).exp() * (gap.exp() - 1 - gap)).mean(), {"a": "metric"}

def k1_advantage(log_prob, old_log_prob, teacher_log_prob):
    return -((teacher_log_prob - old_log_prob).detach() * (log_prob - old_log_prob).exp()).sum()

def top_k_penalty(log_prob, policy_logits, teacher_logits, k=3):
    """The same for every action: as an advantage it teaches nothing."""
    best = teacher_logits.topk(k, -1).indices
    p, t = (x.log_softmax(-1).gather(-1, best) for x in (policy_logits, teacher_logits))
    return (p.exp() * (p - t)).sum(-1).detach() * log_prob

def whole_vocabulary(policy_logits, teacher_logits):
    p, t = policy_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (p.exp() * (p - t)).sum()

def cross_entropy(policy_logits, teacher_logits):
    return -(teacher_logits.softmax(-1) * policy_logits.log_softmax(-1)).sum()

def jensen_shannon(policy_logits, teacher_logits):
    p, t = policy_logits.softmax(-1), teacher_logits.softmax(-1)
    m = (p + t) / 2
    return (p * (p / m).log() + t * (t / m).log()).sum() / 2

def mixed(log_policy, log_teacher):
    return 0.5 * k2(log_policy, log_teacher) + 2 * k3(log_policy, log_teacher, torch.ones(1, 1))

def away(log_policy, log_teacher):
    return -3 * k2(log_policy, log_teacher)

def entropy_alone(log_policy, log_teacher):
    return log_policy * log_policy.detach()

def a_number(log_policy, log_teacher):
    return 1.0

def not_a_number(log_policy, log_teacher):
    return log_policy * float("nan")

def that_fails(log_policy, log_teacher):
    raise ValueError("no such thing")

def that_asks(log_policy, weather):
    return log_policy

def of_nothing():
    return torch.zeros(1)
'''  # fmt: skip


@pytest.fixture(scope="module")
def losses():
    found = {}
    exec(LOSSES, found)
    return found


@pytest.mark.parametrize(
    ("name", "follows", "scale"),
    [
        ("k2", "reverse KL", 1),
        ("rho_k3", "reverse KL", 1),
        ("k1_advantage", "reverse KL", 1),
        ("whole_vocabulary", "reverse KL", 1),
        ("k3", "forward KL", 1),
        ("cross_entropy", "forward KL", 1),
        ("k1", "zero", None),
        ("top_k_penalty", "zero", None),
        ("entropy_alone", "zero", None),
        ("jensen_shannon", "neither", None),
        ("mixed", "neither", None),
        ("away", "neither", None),
    ],
)
def test_what_is_known_is_found(losses, name, follows, scale):
    found = check_loss(losses[name])
    assert found.follows == follows
    assert found.is_sound == (follows in ("reverse KL", "forward KL"))
    if scale is not None:
        assert found.scale == pytest.approx((scale,), rel=1e-9)


def test_a_factor_is_told(losses):
    assert check_loss(lambda log_policy, log_teacher: 7 * losses["k2"](log_policy, log_teacher)).scale[
        0
    ] == pytest.approx(7)


def test_a_mixture_is_told_by_its_parts_and_a_wrong_sign_by_its_direction(losses):
    mixed, away = check_loss(losses["mixed"]), check_loss(losses["away"])
    assert mixed.scale == pytest.approx((0.5, 2), rel=1e-9)
    assert away.scale == pytest.approx((-3, 0), abs=1e-6)
    assert "away from the teacher" in away.sentence()
    assert "neither KL" in check_loss(losses["jensen_shannon"]).sentence()


def test_a_little_of_the_teacher_is_not_taken_for_none(losses):
    found = check_loss(lambda log_policy, log_teacher: 1e-3 * losses["k2"](log_policy, log_teacher))
    assert (found.follows, found.scale[0]) == ("reverse KL", pytest.approx(1e-3))
    leaning = check_loss(
        lambda log_policy, log_teacher: losses["k2"](log_policy, log_teacher) * 1.0 + 1e-3 * log_policy**3
    )
    assert leaning.follows == "neither"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_number", "returned a float"),
        ("not_a_number", "not finite"),
        ("that_fails", "ValueError: no such thing"),
        ("that_asks", "'weather' is not known"),
        ("of_nothing", "no parameter that is known"),
    ],
)
def test_what_cannot_be_checked_is_refused(losses, name, message):
    with pytest.raises(InputError, match=message) as caught:
        check_loss(losses[name])
    assert caught.value.where == name


def run(folder, *words):
    command = [sys.executable, "-m", "sanov.cli", "check-loss", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_command_ends_with_3_where_nothing_is_distilled(tmp_path):
    (tmp_path / "mine.py").write_text(LOSSES)
    done = [run(tmp_path, f"mine:{name}") for name in ("k2", "k1", "nowhere")]
    assert [each.returncode for each in done] == [0, 3, 2]
    assert "KL(policy || teacher)" in done[0].stdout
    assert "nothing is distilled" in done[1].stdout
    assert done[2].stderr.startswith("error: mine:nowhere")
    told = run(tmp_path, "mine:jensen_shannon", "--json")
    assert (told.returncode, json.loads(told.stdout)["follows"]) == (3, "neither")


def test_random_numbers_of_the_caller_stay(losses):
    before = torch.random.get_rng_state()
    check_loss(losses["k2"])
    assert torch.equal(before, torch.random.get_rng_state())
