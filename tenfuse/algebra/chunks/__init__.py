"""Chunk programs: steps of a recurrence as one step over a whole chunk."""
