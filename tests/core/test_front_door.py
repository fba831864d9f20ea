"""A system can be handed on like any other object: to another process, to a copy."""

import copy
import pickle

import pytest

import sanov


@pytest.mark.parametrize("handed", [copy.copy, copy.deepcopy, lambda system: pickle.loads(pickle.dumps(system))])
def test_a_system_can_be_copied(handed):
    again = handed(sanov.pn)
    assert repr(again) == repr(sanov.pn)
    assert again.__doc__ == sanov.pn.__doc__
    assert again.Config is sanov.pn.Config


def test_a_system_has_no_private_names():
    assert not hasattr(sanov.pn, "_repr_html_")
    with pytest.raises(AttributeError, match="'System' object has no attribute '__array__'"):
        sanov.pn.__array__  # noqa: B018
