"""Measuring other choices than the cost model's, here or on a board.

In: a program, a target, a budget. Out: a tuning record (kernels.choose.record). Asked by the pipeline and the command line.
"""
