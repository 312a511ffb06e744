"""Transfer functions of detectors, as RELION's STAR files hold them."""

import pytest

from verglas.errors import FileFormatError
from verglas.io.detector_mtf import read_mtf

TABLE = "data_\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n0.0 1.0\n0.25 0.6\n0.5 0.2\n"


def test_the_table_is_read(tmp_path):
    (tmp_path / "mtf.star").write_text(TABLE)
    places, values = read_mtf(tmp_path / "mtf.star")
    assert places.tolist() == [0.0, 0.25, 0.5]
    assert values.tolist() == [1.0, 0.6, 0.2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TABLE.replace("rlnMtfValue", "rlnOther"), "has no table with"),
        (TABLE.replace("0.25", "0.75"), "increasing frequencies"),
        (TABLE.replace("0.6", "-0.6"), "increasing frequencies"),
    ],
)
def test_what_is_none_is_refused(tmp_path, text, words):
    (tmp_path / "mtf.star").write_text(text)
    with pytest.raises(FileFormatError, match=words):
        read_mtf(tmp_path / "mtf.star")
