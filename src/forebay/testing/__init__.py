"""What tests need, ours and users': a real broker, a faulty link, crash points."""
