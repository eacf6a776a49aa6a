"""The tiers below a rank's memory, behind one interface."""
