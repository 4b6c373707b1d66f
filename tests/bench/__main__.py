"""``python -m tests.bench [NAME ...]``: all benches, unless some are named; ``--help`` lists them."""

from __future__ import annotations

import sys

from . import (
    admission,
    cost,
    decision,
    discovery,
    load_reports,
    placement,
    reporter,
    reports,
    schedules,
    tail,
)

BENCHES = {
    "decision": decision.main,
    "cost": cost.main,
    "discovery": discovery.main,
    "placement": placement.main,
    "load_reports": load_reports.main,
    "reporter": reporter.main,
    "reports": reports.main,
    "tail": tail.main,
    "admission": admission.main,
    "schedules": schedules.main,
}

if {"-h", "--help"} & set(sys.argv[1:]):
    print(__doc__)
    for name, main in BENCHES.items():
        about = (sys.modules[main.__module__].__doc__ or "").partition("\n")[0]
        print(f"  {name:13} {about}")
    sys.exit()
names = sys.argv[1:2] if sys.argv[1:2] == ["tail"] else sys.argv[1:] or list(BENCHES)
if unknown := set(names) - set(BENCHES):
    sys.exit(f"no bench named {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
for name in names:
    BENCHES[name]()
