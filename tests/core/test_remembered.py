"""The table of bounded size."""

from mlbalance_client.core.remembered import Remembered


def test_the_one_not_asked_for_for_the_longest_goes_first() -> None:
    table: Remembered[str, int] = Remembered(2)
    table["a"], table["b"] = 1, 2

    assert table.get("a") == 1
    table["c"] = 3

    assert (table.get("a"), table.get("b"), table.get("c")) == (1, None, 3)


def test_a_new_value_of_a_known_key_takes_no_room() -> None:
    table: Remembered[str, int] = Remembered(2)
    table["a"], table["b"], table["a"] = 1, 2, 3

    assert (table.get("a"), table.get("b")) == (3, 2)
    table.clear()
    assert table.get("a") is None
