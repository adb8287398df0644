"""The printed calibration: a curve in comments, and lines that a configuration can have."""

import tomllib

import pytest

from models.DPI.calibration import Measurement, judge
from models.DPI.methods import build_method
from tools.calibrate import lines_of, main


def test_the_lines_are_a_configuration_and_the_curve_its_comments() -> None:
    answers = tuple(tuple(prompt / 3 + 0.01 * prompt * step + (step > 5) for step in range(8)) for prompt in range(4))
    measured = Measurement(window=800, lengths=tuple(range(100, 900, 100)), answers=answers)
    lines = list(lines_of(judge(measured)))
    found = tomllib.loads("\n".join(lines))
    assert found["ori_max_position_embeddings"] == 600
    build_method(found["method"], found["params"], found["ori_max_position_embeddings"])
    rows = [line.split() for line in lines if line.startswith("# ") and line.split()[-1] == "-"]
    assert [row[1] for row in rows] == [str(length) for length in measured.lengths]
    assert rows[0][2] == "0.500"
    assert float(rows[6][3]) == pytest.approx(1 + 0.015 * 5.5, abs=1e-3)
    assert any("nats worse in 700 tokens" in line for line in lines)


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (["--window", "0"], "--window 0"), (["--trials", "1"], "--trials 1 must be between 2"):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err
