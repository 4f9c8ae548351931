"""The cold chain: temperatures of fridges are recorded here, and alarms raised, whether the link is up or not."""
