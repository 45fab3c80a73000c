"""What kernels are written with: names, emitted statements, register tiles, sweeps over a picture, planes of channels.

In: sizes and choices. Out: TensorIR. Asked by blocks/ and generic/.
"""
