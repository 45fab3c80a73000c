"""Measuring other choices than the cost model's, here or on a board, and keeping a record."""
