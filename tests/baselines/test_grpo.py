"""GRPO by itself is KDRL without a teacher."""

import pytest
import torch

from learning.toy_run import vector
from sanov.baselines import grpo
from sanov.core.options import parse
from sanov.systems import kdrl
from systems.policy_files import SMALL, policy_folder, prompts_file

pytestmark = pytest.mark.filterwarnings("ignore:.*every completion was cut")


def options(*more):
    return dict(word.split("=", 1) for word in (*SMALL, *more))


def test_grpo_is_kdrl_without_a_teacher(tmp_path):
    policy = policy_folder(tmp_path / "policy", steps=25)
    path = str(prompts_file(tmp_path / "p.jsonl"))
    trained = []
    for system, more in ((grpo, ()), (kdrl, ("kd.combine=grpo",))):
        config = parse(system.Config, options(f"policy={policy}", *more))
        trained.append(vector(system.fit(system.read([path], config), config).model))
    assert torch.equal(*trained)
