"""Who is there: sources of replicas, each an adapter of one Protocol."""

from __future__ import annotations

from .base import Discovery, Membership, create, make_replica

__all__ = ["Discovery", "Membership", "create", "make_replica"]
