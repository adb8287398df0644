import pytest

from pipeline import timing
from pipeline.timing import Speed, Work
from tests.pipeline.small import tiny_model


def test_work_of_a_small_model_against_a_hand_count() -> None:
    model = tiny_model()
    work = timing.work_of(model)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert work.per_token == 2 * layer + 32 + len(model.lm_head.weight) * 32
    assert work.per_pair == 2 * 2 * 4 * 8
    assert work.of(10) == 10 * work.per_token + 50 * work.per_pair


def test_an_estimate_is_the_measured_time_scaled_by_work() -> None:
    work, speed = Work(100, 2), Speed(10, 1.1, 0.5)  # 1,100 multiplications took 1.1 s
    prompts, generation = timing.estimate(speed, work, {"a": (4, [10, 20]), "b": (1, [10])}, {"a": 3, "b": 0})
    assert prompts == pytest.approx(4 * (1.1 + 2.4) / 2 + 1.1)
    assert generation == pytest.approx(4 * 3 * 0.5)


def test_a_measurement_is_of_the_beginning_of_a_prompt() -> None:
    speed = timing.measure(tiny_model(), [3] * (timing.MOST_TOKENS + 7))
    assert speed.tokens == timing.MOST_TOKENS
    assert speed.prefill > 0
    assert speed.new_token >= 0
    assert timing.measure(tiny_model(), [3, 4, 5]).tokens == 3


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "under 10 s"), (42, "about 40 s"), (700, "about 12 min"), (9000, "about 2.5 h"), (4e5, "about 5 days")],
)
def test_a_duration_as_people_say_it(seconds: float, said: str) -> None:
    assert timing.duration(seconds) == said
