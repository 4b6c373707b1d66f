"""Real engines with small models made here: vLLM on the CPU and llama.cpp's server. ``make test-engines``."""
