"""The thesis's tables 6.3 and 6.4 give the thesis's numbers, and a table that cannot be right is refused in a line."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tlkd import cli
from tlkd.contributions import Contributions, read, text
from tlkd.errors import BadInput
from tlkd.observations import QUESTIONS
from tlkd.regions import RATIOS

HEADER = ("class,tl_fg_pos,tl_fg_neg,tl_fg_diff_A,tl_bg_pos,tl_bg_neg,tl_bg_diff_C,"
          "kd_fg_pos,kd_fg_neg,kd_fg_diff_B,kd_bg_pos,kd_bg_neg,kd_bg_diff_D,ratio_A_over_B,ratio_C_over_D,ratio_AB_over_CD\n")
TABLE_6_3 = HEADER + """\
airplane,5532,-5248,284,18587,-19403,-816,5071,-3562,1509,12327,-12161,166,0.19,-4.92,-0.04
automobile,12010,-8869,3141,13821,-14118,-297,12100,-6698,5402,9726,-9336,390,0.58,-0.76,-0.76
bird,12293,-10611,1682,30261,-24876,5385,10776,-7850,2926,21938,-16875,5063,0.57,1.06,0.54
cat,21465,-16568,4897,3138,-3111,27,43021,-30318,12703,4802,-5177,-375,0.39,-0.07,-5.35
deer,18192,-15582,2610,7269,-6650,619,20361,-15231,5130,8670,-7758,912,0.51,0.68,0.75
dog,19277,-16120,3157,9059,-8018,1041,27104,-17838,9266,6302,-5672,630,0.34,1.65,0.21
frog,11510,-8829,2681,8131,-7631,500,13361,-9659,3702,9657,-7905,1752,0.72,0.29,2.54
horse,11404,-9848,1556,8003,-7792,211,14054,-11173,2881,8272,-7476,796,0.54,0.27,2.04
ship,14029,-11110,2919,10825,-8518,2307,15519,-10471,5048,7560,-5719,1841,0.58,1.25,0.46
truck,17514,-12479,5035,10968,-9594,1374,17247,-11066,6181,9585,-7585,2000,0.81,0.69,1.19
"""
TABLE_6_4 = HEADER + """\
cat,24765,-21466,3299,4237,-4479,-242,49298,-43424,5874,7153,-7396,-243,0.56,1.00,0.56
deer,12288,-9765,2523,19005,-16255,2750,16241,-12929,3312,18028,-15376,2652,0.76,1.04,0.73
dog,17579,-14367,3212,6619,-6181,438,32591,-21485,11106,7521,-5459,2062,0.29,0.21,1.36
frog,11045,-8494,2551,8597,-7966,631,12914,-9538,3376,10104,-8025,2079,0.76,0.30,2.49
horse,16842,-12207,4635,9709,-9219,490,27939,-18069,9870,13364,-11887,1477,0.47,0.33,1.42
"""
P_6_3 = (0.001953, 0.001953, 0.001953, 0.1934, 0.1602, 0.7695, 0.08398, 0.009766)  # in the order of QUESTIONS
RISES_6_3 = (10, 10, 10, 6, 4, 4, 7, 8)
P_6_4 = (0.0625, 0.0625, 0.0625, 0.3125, 0.1875, 0.0625, 0.0625, 0.125)
RISES_6_4 = (5, 5, 5, 3, 4, 5, 5, 4)


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(content)
    return path


def changed(line: int, column: str, value: str, table: str = TABLE_6_3) -> str:
    """The table with one cell of a line (2 is the first row) written over."""
    lines = table.splitlines()
    cells = lines[line - 1].split(",")
    cells[lines[0].split(",").index(column)] = value
    lines[line - 1] = ",".join(cells)
    return "\n".join(lines) + "\n"


def without(table: str, *columns: str) -> str:
    rows = [line.split(",") for line in table.splitlines()]
    kept = [number for number, name in enumerate(rows[0]) if name not in columns]
    return "\n".join(",".join(row[number] for number in kept) for row in rows) + "\n"


@pytest.fixture
def found(tmp_path: Path) -> Contributions:
    return read(written(tmp_path, TABLE_6_3))


@pytest.mark.parametrize(("table", "ps", "rises"), [(TABLE_6_3, P_6_3, RISES_6_3), (TABLE_6_4, P_6_4, RISES_6_4)])
def test_the_theses_tables_give_the_theses_numbers(tmp_path, table, ps, rises):
    tests = read(written(tmp_path, table)).tests
    assert [f"{tests[question].p:.4g}" for question in QUESTIONS] == [f"{p:.4g}" for p in ps]
    assert tuple(tests[question].rises for question in QUESTIONS) == rises
    assert {each.method for each in tests.values()} == {"exact"}


@pytest.mark.parametrize("table", [TABLE_6_3, TABLE_6_4])
def test_the_ratio_columns_follow_to_two_decimals(tmp_path, table):
    one = read(written(tmp_path, table))
    printed = [[row.split(",")[i] for row in table.splitlines()[1:]] for i in (-3, -2, -1)]
    assert [[f"{value:.2f}" for value in one.ratios[name]] for name in RATIOS] == printed
    assert one.notes == ()


def test_medians_and_effects_of_table_6_3(found):
    ab = found.tests[QUESTIONS[2]]
    assert (ab.before, ab.after, ab.shift) == (2800, 5089, 1872.5) and ab.rank_biserial == 1
    assert (ab.low, ab.high) == (1225, 4515.5)
    share = found.tests[QUESTIONS[7]]
    assert share.shift == pytest.approx(0.0474, abs=5e-5) and share.rank_biserial == pytest.approx(49 / 55)


def test_the_text_holds_every_p_to_four_digits(found):
    said = text(found)
    for question, p in zip(QUESTIONS, P_6_3, strict=True):
        (line,) = [line for line in said.splitlines() if f" {question.words()}  " in line]
        assert line.endswith(f"  {p:#.4g}") and f" {found.tests[question].rises} of 10 " in line
        assert line.startswith(f"{question.number or ' '}  ")
    assert re.search(r"airplane +0\.19 +-4\.92 +-0\.04\n", said)
    assert "below 1 in 10 of 10" in said and "two scales" in said and "exact" in said and "note:" not in said
    assert "With 10 images no p can fall below 0.001953" in said


def test_the_command_prints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tlkd", "regions", str(written(tmp_path, TABLE_6_3))])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert caught.value.code == 0 and err == ""
    assert all(f"{p:#.4g}\n" in out for p in P_6_3)


def test_diff_and_ratio_columns_need_not_be_there(tmp_path, found):
    bare = without(TABLE_6_3, *(name for name in HEADER.strip().split(",") if "diff" in name or "ratio" in name))
    one = read(written(tmp_path, bare))
    assert one.tests == found.tests and one.notes == ()
    np.testing.assert_array_equal(one.ratios, found.ratios)


def test_repeated_classes_blank_lines_and_a_byte_order_mark_are_fine(tmp_path, found):
    content = "\ufeff" + TABLE_6_3.replace("bird", "cat").replace("\ndeer", "\n\ndeer").replace("\n", "\r\n")
    assert read(written(tmp_path, content)).tests == found.tests


def test_a_ratio_that_does_not_follow_is_a_note(tmp_path):
    one = read(written(tmp_path, changed(5, "ratio_C_over_D", "0.07")))
    assert one.notes == ("ratio_C_over_D of row 4 (cat): printed 0.07, recomputed -0.07",)
    assert text(one).endswith("note: " + one.notes[0] + "\n")
    assert read(written(tmp_path, changed(5, "ratio_C_over_D", ""))).notes[0].endswith("printed -, recomputed -0.07")


def test_a_column_that_is_not_known_is_a_note(tmp_path):
    one = read(written(tmp_path, TABLE_6_3.replace("tl_fg_diff_A", "tl_fg_diff")))
    assert one.notes == ("column 'tl_fg_diff' is not used; did you mean 'tl_fg_diff_A'?",)


def test_rounding_of_diff_is_allowed_for(tmp_path):
    assert read(written(tmp_path, changed(2, "tl_fg_diff_A", "285"))).tl["fg_diff"][0] == 285
    with pytest.raises(BadInput, match="found 286, but pos"):
        read(written(tmp_path, changed(2, "tl_fg_diff_A", "286")))
    fine = changed(2, "tl_fg_pos", "5532.00", changed(2, "tl_fg_neg", "-5248.00", changed(2, "tl_fg_diff_A", "284.02")))
    with pytest.raises(BadInput, match=r"found 284.02, but pos \+ neg is 284.00"):
        read(written(tmp_path, fine))


def test_zero_divisors_have_no_ratio(tmp_path):
    lines = changed(2, "kd_fg_neg", "-5071", changed(2, "kd_fg_diff_B", "0")).splitlines()
    one = read(written(tmp_path, "\n".join(lines)))
    assert math.isnan(one.ratios["ratio_A_over_B"].iloc[0]) and len(one.notes) == 2
    assert re.search(r"airplane +- +-4\.92 +-\n", text(one))


@pytest.mark.parametrize(("content", "said"), [
    ("", "is empty"),
    ("\n \n", "is empty"),
    (HEADER, "has 0 rows; a paired test needs 2"),
    ("".join(TABLE_6_3.splitlines(keepends=True)[:2]), "has 1 row; a paired test needs 2"),
    (TABLE_6_3.replace("tl_fg_pos", "tl_fg_positive"), "lacks the column tl_fg_pos; did you mean 'tl_fg_positive'?"),
    (without(TABLE_6_3, "kd_bg_pos", "kd_bg_neg"), "lacks the columns kd_bg_pos, kd_bg_neg; expected class"),
    (without(TABLE_6_3, "class"), "lacks the column class"),
    (TABLE_6_3.replace(",", ";"), "lacks the columns class, tl_fg_pos"),
    (changed(4, "kd_bg_neg", "many"), "line 4 (bird), column kd_bg_neg: found 'many', expected a number"),
    (changed(4, "kd_bg_neg", ""), "line 4 (bird), column kd_bg_neg: found '', expected a number"),
    (changed(4, "kd_bg_neg", "nan"), "line 4 (bird), column kd_bg_neg: found 'nan', expected a finite number"),
    (changed(4, "kd_bg_neg", "-1e999"), "expected a finite number"),
    (changed(4, "kd_bg_neg", "16875"), "found '16875', expected 0 or less: the sum of the negative values"),
    (changed(4, "kd_bg_pos", "-1"), "found '-1', expected 0 or more: the sum of the positive values"),
    (changed(4, "tl_fg_diff_A", "1700"), "line 4 (bird), column tl_fg_diff_A: found 1700, but pos + neg is 1682"),
    (changed(4, "ratio_A_over_B", "x"), "column ratio_A_over_B: found 'x', expected a number"),
    (TABLE_6_3.replace("bird,", "bird,,"), "line 4 has 17 cells, expected 16"),
    (TABLE_6_3.replace("tl_bg_pos", "tl_fg_pos"), "has the column 'tl_fg_pos' twice"),
    (TABLE_6_3.replace("bird", '"bird'), "is not a CSV file"),
])
def test_a_table_that_cannot_be_right_is_refused_in_one_line(tmp_path, monkeypatch, capsys, content, said):
    path = written(tmp_path, content)
    monkeypatch.setattr(sys, "argv", ["tlkd", "regions", str(path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1
    assert said in err and str(path) in err


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(BadInput, match="is a directory"):
        read(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"class\xff\xfe\n")
    with pytest.raises(BadInput, match="not a CSV file"):
        read(tmp_path / "bytes.csv")
