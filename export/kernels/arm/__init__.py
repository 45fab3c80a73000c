"""Assembly for 64-bit ARM, as LLVM functions that TensorIR code calls: the register tile, and a band of a depthwise convolution.

In: a TileForm or BandForm that says everything about the code's shape. Out: its text. Asked by write/ and choose/.
"""
