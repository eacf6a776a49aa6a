"""Everything that the operator writes: server-side apply with one field manager, and never a write that changes nothing."""
