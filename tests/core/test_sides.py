"""Whose left it is: names exchanged for cameras that mirror."""
import pytest

from tsm_edge.card import Card
from tsm_edge.errors import InputError
from tsm_edge.jester import CLASSES
from tsm_edge.sides import for_mirrored_camera, mirrored_names, whose


def test_of_jesters_names_six_are_exchanged_and_the_others_stay():
    turned = dict(zip(CLASSES, mirrored_names(CLASSES)))
    pairs = {("Swiping Left", "Swiping Right"), ("Sliding Two Fingers Left", "Sliding Two Fingers Right"),
             ("Turning Hand Clockwise", "Turning Hand Counterclockwise")}
    assert {(a, b) for a, b in turned.items() if a < b} == pairs and all(turned[turned[name]] == name for name in CLASSES)


@pytest.mark.parametrize("name, turned", [
    ("swipe-left", "swipe-right"), ("LEFT", "RIGHT"), ("turn_anticlockwise", "turn_clockwise"), ("leftover", "leftover"),
    ("upright", "upright"), ("Thumb Up", "Thumb Up"), ("bright light", "bright light"),
])
def test_only_sides_are_turned(name, turned):
    assert mirrored_names([name, turned] if name != turned else [name])[0] == turned
    assert bool(whose({"classes": [name], "input": {}})) == (name != turned)


def test_a_class_without_its_opposite_is_refused():
    with pytest.raises(InputError, match="a mirror makes") as error:
        mirrored_names(["swipe left", "wave"])
    assert "swipe right" in error.value.expected


def test_the_card_says_it_and_twice_is_as_before():
    card = Card({"classes": ["left", "right", "up"], "num_classes": 3})
    turned = for_mirrored_camera(card)
    assert turned.classes == ["right", "left", "up"] and turned.manifest()["input"]["camera"] == "mirrored"
    again = for_mirrored_camera(turned)
    assert again.classes == card.classes and again.camera == card.camera == "direct" == card.manifest()["input"]["camera"]
    with pytest.raises(InputError, match="no left and right"):
        for_mirrored_camera(Card({"num_classes": 3}))
    assert "does not mirror" in whose(card.manifest()) and "as a mirror does" in whose(turned.manifest())


def test_a_mirrored_picture_gets_the_same_name_from_a_symmetric_network():
    """The mirrored export's answer to a mirrored film is the plain one's to the film."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def symmetric(x):  # "left": more light in the right half, as the performer's left is; "right"; "up": light above
        half = x.shape[-1] // 2
        left, right = x[..., half:].mean((1, 2, 3)), x[..., :half].mean((1, 2, 3))
        return torch.stack([left, right, x[..., : x.shape[-2] // 2, :].mean((1, 2, 3))], 1)

    frames = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ["left", "right", "up"]
    plain = [names[i] for i in symmetric(frames).argmax(1)]
    turned = [mirrored_names(names)[i] for i in symmetric(frames.flip(-1)).argmax(1)]
    assert plain == turned and len(set(plain)) > 1
