"""What runs a step: the compiled library, onnxruntime, TVM, torch; each imports its library when it is opened."""
