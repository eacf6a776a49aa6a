"""Which replica leads: ``lease`` decides by what a Lease says, ``elector`` reads and writes it."""
