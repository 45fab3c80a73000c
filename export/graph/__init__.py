"""From a step network to an ONNX file, and from that file to the list of operations that kernels are chosen for."""
