"""What the operator says about a pool: a chain of checks over one ``Observed``, folded into conditions.

Pure: no client, no clock. Each check looks at one thing and returns a finding or None; the first finding of a condition is
what the user reads.
"""
