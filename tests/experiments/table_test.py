from runs import table


def test_columns_are_as_wide_as_their_longest_cell():
    lines = [["name", "loss"], ["a", "0.1"], ["longer", "10.25"]]
    assert table.text(lines, left=(0,)).splitlines() == [
        "name     loss",
        "a         0.1",
        "longer  10.25",
    ]


def test_columns_have_at_least_the_width_given():
    assert table.text([["a", "b"], ["c", "dd"]], widths=(3, 4), gap="") == "  a   b\n  c  dd"


def test_nothing_is_left_behind_the_last_cell():
    assert table.text([["a", "status"], ["b", ""]], left=(1,)) == "a  status\nb"


def test_cells_are_escaped_in_html():
    page = table.as_html([["<a>"], ["b & c"]])
    assert "<th>&lt;a&gt;</th>" in page
    assert "<td>b &amp; c</td>" in page
    assert "<td>x &lt; y</td>" in table.pairs_as_html({"key": "x < y"})


def test_scores_have_four_digits_or_none():
    assert table.digits(0.5) == "0.5000"
    assert table.digits(None) == "none"
    assert table.digits(None, "inf") == "inf"
