"""A consumer whose handler gets many events at once."""
