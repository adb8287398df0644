from tasks.metrics.classification import classification

CLASSES = ["Other", "Location", "Other location", "City", "State"]


def test_named_once() -> None:
    assert classification("It is a City.", "City", CLASSES) == 1.0
    assert classification("It is a City.", "State", CLASSES) == 0.0
    assert classification("no idea", "City", CLASSES) == 0.0


def test_every_named_class_divides_the_score() -> None:
    assert classification("City, State or Location", "State", CLASSES) == 1 / 3


def test_parts_of_the_answers_name_do_not_count_against_it() -> None:
    assert classification("Other location", "Other location", CLASSES) == 1.0


def test_the_class_after_a_removed_one_stays_as_in_the_official_scorer() -> None:
    # "ab" goes, "b" moves into its place unseen, "abc" is the answer: 1 of 2.
    assert classification("abc", "abc", ["ab", "b", "abc"]) == 0.5
