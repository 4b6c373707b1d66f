"""Simulated replicas, real traces, an omniscient router and open-loop replay. Imports nothing of the product."""
