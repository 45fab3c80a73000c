"""What runs a step: the compiled library (native), onnxruntime, a library for TVM's runtime, torch.

In: a bundle, an ONNX file or a checkpoint. Out: a Model of interface.py. Each imports its library when it is opened, and says which
extra brings it. Asked by `tsm_edge.load`.
"""
