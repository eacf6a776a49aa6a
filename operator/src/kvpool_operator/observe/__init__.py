"""Everything that the operator reads, gathered into one immutable ``Observed``. Decides nothing, writes nothing."""
