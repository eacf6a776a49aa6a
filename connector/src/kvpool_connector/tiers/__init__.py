"""Tiers next to the engine: the arena (bytes, in every rank) and the index of its slots (in the scheduler)."""
