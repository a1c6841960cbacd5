"""Rewards for others: the server at the other end of kind `remote`."""
