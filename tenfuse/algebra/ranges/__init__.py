"""Sign and range of values, by interval arithmetic."""
