"""What replicas say of their load: one adapter an engine, all giving ``core.load_report.LoadReport``."""
