"""Over any window no more is spent than the share of what was sent, and the reserve."""

from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.budget import Budget

events = st.lists(st.tuples(st.sampled_from(["sent", "spend"]), st.integers(0, 5000)), max_size=60)


@given(events, st.sampled_from([0.0, 0.05, 0.1, 1.0]), st.integers(0, 10_000))
def test_any_window_is_bounded(events: list[tuple[str, int]], ratio: float, reserve: int) -> None:
    budget = Budget(ratio, reserve)
    sent, spent = [0.0], [0.0]
    for what, amount in events:
        granted = what == "spend" and budget.covers(amount)
        if what == "sent":
            budget.sent(amount)
        else:
            assert budget.spend(amount) is granted
        sent.append(sent[-1] + amount * (what == "sent"))
        spent.append(spent[-1] + amount * granted)
        assert 0 <= budget.left <= reserve
    for start in range(len(sent)):
        for end in range(start, len(sent)):
            assert spent[end] - spent[start] <= ratio * (sent[end] - sent[start]) + reserve + 1e-6


def test_traffic_earns_what_may_be_spent() -> None:
    budget = Budget(0.1, 2)
    assert budget.spend(2)
    assert not budget.spend()
    for _ in range(11):
        budget.sent()

    assert budget.spend()
    assert not budget.spend()
