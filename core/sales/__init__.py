"""The read model of what the tills rang up: sales, lines and cents per node, and per node and UTC day."""
