"""The command `python -m kiln.sample`."""

import pytest

from kiln.sample.__main__ import main


def test_command_line(tmp_path, capsys):
    chosen = ["--datasets", "worldcover", "--pixels-per-degree", "32", "--years", "2021", "--tiles", "N45E006"]
    main(["--out", str(tmp_path), *chosen])
    assert capsys.readouterr().out.startswith("worldcover: 1 file")
    name = "rgbnir/2021/N45/ESA_WorldCover_10m_2021_v200_N45E006_S2RGBNIR.tif"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "worldcover" / name]


@pytest.mark.parametrize(
    "wrong", [["--years", "1999"], ["--tiles", "Paris"], ["--pixels-per-degree", "3"], ["--datasets", "modis"]]
)
def test_command_line_errors(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path), "--datasets", "worldcover", *wrong])
    assert caught.value.code == 2
    assert wrong[1] in capsys.readouterr().err


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    quick = ["--datasets", "worldcover", "--pixels-per-degree", "16", "--tiles", "N43W001"]
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path / "out"), *quick])
    assert caught.value.code == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
