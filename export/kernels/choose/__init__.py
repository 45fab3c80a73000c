"""What is free in a kernel (tile sizes, strips), and which choice is expected to be fast."""
