"""The processes of a run: which there are, how they meet, and how one stops all."""
