"""A step with a command of its own below it."""

import pytest

from verglas.cli.app import main
from verglas.cli.families import make_family


@pytest.mark.parametrize("words", [["fiducials", "train"], ["estimate", "fiducials", "train"]])
def test_a_command_below_a_step_is_reached(words, capsys):
    assert (
        main([*words, "--steps", "0", "--out", "x"] if words[0] == "fiducials" else [*words, "--steps", "0"])
        == 2
    )
    assert "`steps` must be greater than or equal to 1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fiducials"], ["estimate", "fiducials"]])
def test_the_step_itself_takes_its_inputs(words, tmp_path, capsys):
    more = ["--out", str(tmp_path / "out")] if words[0] == "fiducials" else []
    assert main([*words, str(tmp_path / "none.star"), *more]) == 2
    assert "none.star' does not exist" in capsys.readouterr().err


def test_there_is_no_family_without_its_step():
    with pytest.raises(AttributeError):
        make_family("train")
