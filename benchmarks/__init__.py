"""What measures: a bundle beside other engines on this machine, and instruction counts for ARM."""
