from itertools import chain

from lidc_cdam.metrics.comparison import TITLES
from reports.explained import COLUMNS, FAMILIES, MEANINGS


def test_every_column_is_a_metric_of_one_table_with_its_meaning():
    assert list(chain.from_iterable(FAMILIES.values())) == list(COLUMNS)
    assert set(COLUMNS) <= set(TITLES)
    assert {chance for _, chance, _ in COLUMNS.values() if chance} <= set(TITLES)
    # One sentence says what both differences between targets are.
    assert set(COLUMNS) - set(MEANINGS) == {"box_delta"}
