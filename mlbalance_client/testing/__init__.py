"""For those who extend this library: suites that show whether an extension does what the library counts on.

They need neither pytest nor a plugin of it: each is a class to derive from, whose tests are plain methods.
"""

from __future__ import annotations

from .discovery import DiscoveryConformance, Registry

__all__ = ["DiscoveryConformance", "Registry"]
