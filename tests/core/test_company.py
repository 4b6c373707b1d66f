"""Whether others use the same replicas is read from waiting and from caches."""

from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.load.company import Company


def test_until_answers_show_otherwise_there_may_be_others() -> None:
    assert Company().share == 1.0


def test_caches_that_hold_only_what_was_sent_show_that_nobody_else_is_there() -> None:
    company = Company()
    for _ in range(10):
        company.found_cached(2000, 2000)

    assert company.share < 0.1


def test_cached_tokens_that_one_never_sent_are_others() -> None:
    company = Company()
    for _ in range(50):
        company.found_cached(2000, 2000)
    for _ in range(20):
        company.found_cached(2000, 0)

    assert company.share > 0.5


def test_what_every_call_waits_is_nobodys_work_but_what_some_wait_is() -> None:
    alone, crowded = Company(), Company()
    for call in range(100):
        for company in (alone, crowded):
            company.found_cached(500, 500)
        alone.stood(0.030, 0.002)
        crowded.stood(0.030 if call % 2 else 1.0, 0.002)

    assert alone.share < 0.1
    assert crowded.share > 0.5


def test_a_client_that_begins_in_company_stays_there() -> None:
    company = Company()
    for number in range(120):
        company.found_cached(1000, 1000)
        company.stood(0.3 + 5.0 * (number % 2), 0.3)
        assert company.degree == 1.0
        assert company.delays or number < 2


def test_where_even_the_best_calls_wait_for_seconds_others_are_at_work() -> None:
    company = Company()
    for _ in range(9):
        company.stood(12.0, 1.0)
    assert company.delays
    for _ in range(200):
        company.stood(12.0, 1.0)
        assert company.delays
        assert not company.leaves_alone


def test_a_few_calls_do_not_show_that_nobody_else_is_there() -> None:
    company = Company()
    for _ in range(9):
        company.stood(1.0, 1.0)
        assert not company.leaves_alone
    company.stood(1.0, 1.0)
    assert company.leaves_alone


def test_one_call_that_stalls_is_no_company() -> None:
    alone, crowded = Company(), Company()
    for company in (alone, crowded):
        for _ in range(80):
            company.found_cached(1000, 1000)
    for number in range(300):
        alone.stood(45.0 if number >= 290 and number % 4 == 0 else 1.0, 1.0)
        crowded.stood(1.0 + number % 2, 1.0)
    assert alone.degree < 0.7
    assert not alone.delays
    assert crowded.degree == 1.0
    assert crowded.delays


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**9), st.integers(0, 10**9)))
)
def test_it_is_always_a_share(calls: list[tuple[float, float, int, int]]) -> None:
    company = Company()
    for stood_s, own_s, cached, sent in calls:
        company.stood(stood_s, own_s)
        company.found_cached(cached, sent)
        assert 0.0 <= company.share <= 1.0
