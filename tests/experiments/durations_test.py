import pytest

from runs import durations

SIZES = {"batch_size": 10, "num_examples": 95}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3 epochs", 30),
        ("1 epoch", 10),
        ("0.5epochs", 5),
        ("7 steps", 7),
        ("1 step", 1),
        ("1e3 examples", 100),
        ("10%", 20),
        (" 2.5 % ", 5),
    ],
)
def test_steps(text, steps):
    assert durations.steps(text, **SIZES, total_steps=200) == steps


@pytest.mark.parametrize(
    "text",
    ["", "3", "epochs", "three epochs", "3 days", "-1 steps", "inf steps", "nan steps", "1.2.3%"],
)
def test_what_is_no_duration_is_refused_with_the_choices(text):
    with pytest.raises(ValueError, match="is no duration: give a number and one of steps, epochs"):
        durations.parse(text)


@pytest.mark.parametrize("text", ["10%", "5 seconds"])
def test_what_cannot_be_steps_is_refused(text):
    with pytest.raises(ValueError, match="give it in steps, epochs or examples"):
        durations.steps(text, **SIZES)


def test_seconds():
    assert durations.parse("90 seconds") == (90, "seconds")
