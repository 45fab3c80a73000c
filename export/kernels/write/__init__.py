"""What the builders write kernels with: names, emitted statements, tiles, sweeps, planes."""
