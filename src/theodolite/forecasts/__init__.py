"""What the records say, now (findings) and ahead (laws). Needs no model."""
