"""The scheduler's half: which key is where, which slot is whose. No I/O on vLLM's scheduler thread, ever."""
