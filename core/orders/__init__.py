"""The orders: click and collect, as a saga over stores and a payment provider."""
