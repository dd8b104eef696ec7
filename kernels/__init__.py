"""Floor 1: one folder per operation, arrays in and arrays out.  Knows nothing of the floors above."""
