"""Counting the ARM instructions of a bundle's step under QEMU: no board needed, and no time is claimed."""
