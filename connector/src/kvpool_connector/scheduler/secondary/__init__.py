"""The tiers below memory, as the scheduler's half sees them."""
