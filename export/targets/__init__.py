"""The devices: what their processors can do (boards), and what this machine is (host).

In: a name. Out: a Target, which is all that kernels, library and proof know of a device. Kernels ask for `target`, never for `boards`.
"""
