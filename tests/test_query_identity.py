"""The benchmark that compares how well detectors' queries tell people apart."""

import pytest

from benchmarks import query_identity
from tests.stages import Stages


@pytest.mark.slow
def test_each_layer_of_a_detector_is_a_row(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--dataset", "synthetic", "--data_root", stages.data, "--checkpoint_root", stages.checkpoint]
    flags += ["--detr", "synthetic", "--layers", 1, 3, "--steps", 2, "--device", "cpu", "--threads", 1, "--workers", 1]
    monkeypatch.setattr("sys.argv", ["query_identity", *map(str, flags)])
    query_identity.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("synthetic")]
    assert [row[1] for row in rows] == ["1/3", "3/3"] and rows[0][3] == rows[1][3]  # one threshold of scores
    for row in rows:
        assert all(0 <= float(value) <= 1 for value in row[3:10] if value != "-")
        assert float(row[10]) > 0 and float(row[11]) > 0  # GFLOP, frames a second
