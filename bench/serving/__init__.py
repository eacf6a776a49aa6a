"""``make bench-engine``: what a user waits for, with the pool, without it and with LMCache, in one run."""
