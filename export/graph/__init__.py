"""From a step network to operations.

In: a StepNetwork. Out: the ONNX file (write), and the list of operations read back from it (to_ops: an ops.Program), which is all that
kernels know of a network. Asked by kernels, library, tuning and the pipeline.
"""
