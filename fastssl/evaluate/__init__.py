"""How good a frozen backbone is: features, nearest neighbours, a linear probe."""
