"""The devices: what their processors can do, and what this machine is."""
