"""Small programs that work on a database with the engine's own code, to be killed, failed and cut off from outside."""
