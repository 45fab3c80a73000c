"""What the classes of a network are called, and what that makes of its name and events."""
from types import SimpleNamespace

import pytest

from tsm_edge.errors import InputError
from tsm_edge.export.bundle.describe import describe
from tsm_edge.export.targets.boards import get_target
from tsm_edge.jester import CLASSES


def manifest(outputs=27, classes=None, **info):
    net = SimpleNamespace(tsm_info={"name": "mobilenet_v2", "input_size": (224, 224), "past": (0, 1), **info})
    return describe(net, SimpleNamespace(cache_specs=[]), get_target("host"), outputs, classes=classes)


def test_random_weights_for_27_classes_claim_no_gestures():
    got = manifest(trained=False)
    assert got["classes"] == [f"class {i}" for i in range(27)] and got["trained"] is False
    assert got["name"] == "mobilenet_v2-untrained" and got["events"]["merge"] == {} and got["events"]["ignore"] == []


def test_gesture_names_given_to_random_weights_do_not_make_them_the_jester_network():
    got = manifest(classes=list(CLASSES), trained=False)
    assert got["classes"] == list(CLASSES) and got["name"] == "mobilenet_v2-untrained"
    assert got["events"]["background"] == [0, 2] and got["events"]["merge"] == {}


def test_the_trained_network_of_these_classes_is_the_jester_network():
    got = manifest(classes=list(CLASSES), trained=True)
    assert got["name"] == "mobilenet_v2-jester" and got["events"]["merge"] == {"0": 2}


def test_names_that_do_not_fit_the_outputs_are_refused():
    with pytest.raises(InputError, match="class names cannot be used"):
        manifest(5, classes=["a", "b"])


@pytest.mark.parametrize("part, options", [
    ("std", {"std": [0, 0, 0]}), ("mean", {"mean": "abc"}), ("model name", {"model_name": 5}), ("fps", {"fps": float("inf")}),
    ("filter", {"filter": "best"}), ("events.window", {"events": {"window": 0, "hold": 1, "on": 1, "off": 1, "merge": {},
                                                                        "ignore": [], "background": []}})])
def test_other_wrong_descriptions_are_refused_with_a_way_out(part, options):
    with pytest.raises(InputError, match=f"{part} cannot be used") as error:
        manifest(**options)
    assert error.value.found and error.value.expected and error.value.do and "export the network again" not in error.value.do
