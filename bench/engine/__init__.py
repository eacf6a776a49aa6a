"""Benchmarks that import vLLM: run with the engine's Python."""
