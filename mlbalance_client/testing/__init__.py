"""Conformance suites for plugins, one a group of entry points. They need no test runner."""
