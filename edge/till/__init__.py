"""The till: sales are rung up here, whether the link is up or not."""
