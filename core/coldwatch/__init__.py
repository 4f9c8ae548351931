"""The watch over the fridges: alerts where one is too warm for too long, by the time of its readings."""
