"""The processes of a multi-host run: which there are, how they join, and how a failure of one stops all of them."""
