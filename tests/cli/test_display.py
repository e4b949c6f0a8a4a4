"""Tests of the tables that people see."""

from __future__ import annotations

import numpy as np

from edgecifar.cli.display import padded, width_of
from edgecifar.cli.training_display import evaluation_table
from edgecifar.runtime.metrics import score


def test_texts_are_padded_by_the_columns_that_they_take():
    assert padded("ab", 4) == "ab  "
    assert padded("漢", 4) == "漢  "
    assert padded("e\u0301", 3) == "e\u0301  "
    assert padded("漢", 4, ">") == "  漢"


def test_a_table_of_labels_that_are_wider_than_its_column():
    labels = ("漢" * 31, "b")  # 62 columns
    table = evaluation_table(score(np.eye(2, dtype=np.float32), np.array([0, 1]), labels, 1.0), "own")
    assert f"  {labels[0]} 100.0 %" in table


def test_all_rows_of_a_table_are_equally_wide():
    labels = ("三角形🔺", "=line")
    lines = evaluation_table(score(np.eye(2, dtype=np.float32), np.array([0, 1]), labels, 1.0), "own").splitlines()
    assert len({width_of(line) for line in lines[-3:]}) == 1
