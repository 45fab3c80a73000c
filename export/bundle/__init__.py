"""The folder that is handed over: golden frames, README, report, Android package; whole or not at all."""
