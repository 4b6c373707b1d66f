"""Who gets no calls is told with the reason, whoever said so: discovery, or its own answers about one model."""

from __future__ import annotations

from random import Random

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.model import Demand, Replica, ReplicaId, ReplicaState
from mlbalance_client.core.report import preview, snapshot

A, B, C, D = (ReplicaId(name) for name in "abcd")


def fleet_of(*replicas: Replica) -> Fleet:
    fleet = Fleet(PickingConfig(), Random(1))
    fleet.update(replicas, 0.0)
    return fleet


def test_whom_discovery_takes_out_is_told_as_kept_out() -> None:
    fleet = fleet_of(
        Replica(A, "http://a:1"),
        Replica(B, "http://b:1", state=ReplicaState.DRAINING),
        Replica(C, "http://c:1", state=ReplicaState.OUT, because="its check fails"),
        Replica(D, "http://d:1", state=ReplicaState.OUT, models=frozenset({"another"})),
    )
    why = {
        B: "discovery says that it is draining",
        C: "discovery says that it is out: its check fails",
        D: "discovery says that it is out",
    }

    kept_out = {row.id: row.kept_out for row in snapshot(fleet, 1.0, "prefix_tokens").replicas}
    explained = preview(fleet, Demand(fingerprint(b"x"), 10, 10, model="m"), 1.0, queued=0, urgent=False)

    assert kept_out == {A: None, **why}
    # One that does not serve the model is none that could have the call.
    assert {out.replica: out.why for out in explained.kept_out} == {B: why[B], C: why[C]}
    assert f"b is kept out: {why[B]}" in str(explained)


def test_the_models_that_a_replica_lacks_are_named_while_it_rests_for_them() -> None:
    fleet = fleet_of(Replica(A, "http://a:1"), Replica(B, "http://b:1"))
    for model in ("two", "one", None):
        fleet.pick(Demand(fingerprint(b"x"), 10, 10, model=model), 1.0, [B]).lacks_model(1.0)

    rows = {row.id: row for row in snapshot(fleet, 1.5, "prefix_tokens").replicas}
    assert (rows[A].lacks, rows[B].lacks) == (("one", "two"), ())
    explained = preview(fleet, Demand(fingerprint(b"x"), 10, 10, model="one"), 1.5, queued=0, urgent=False)
    assert [out.why for out in explained.kept_out] == ["it has answered that it does not have the model"]

    rows = {row.id: row for row in snapshot(fleet, 100.0, "prefix_tokens").replicas}
    assert rows[A].lacks == ()
