from lidc_cdam.metrics.text_tables import aligned, cell


def test_a_cell_has_its_interval_or_a_dash() -> None:
    assert cell({"value": 1.234, "low": 1.0, "high": 1.5}, "+.2f") == "+1.23 [+1.00, +1.50]"
    assert cell({"value": 1.0, "low": None, "high": None}, ".1f") == "1.0"
    assert cell({"value": None, "low": None, "high": None}, ".1f") == cell(None, ".1f") == "-"


def test_columns_are_aligned_without_trailing_blanks() -> None:
    assert aligned([["a", "1"], ["long", ""]], ["name", "n"]) == ["name  n", "a     1", "long"]
