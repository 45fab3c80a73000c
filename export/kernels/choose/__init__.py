"""What is free in a kernel (tile sizes, strips, panels), and which choice is expected or was measured to be fast.

In: an operation's sizes and a target, or a tuning record. Out: Choices. Asked by blocks/, kernels.calls and tuning.
"""
