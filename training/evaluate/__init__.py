"""Figures of a trained network: accuracy by clips and as a stream, confusion, where it looks.

In: a model of any engine and clips. Out: numbers, tables, pictures. Asked by tsm-eval.
"""
