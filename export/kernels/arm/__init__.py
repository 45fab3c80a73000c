"""Assembly for 64-bit ARM: the register tile and the band of a depthwise convolution."""
