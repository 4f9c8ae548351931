"""The stock of a store: what is there of each product, what is kept for orders, and how that came about."""
