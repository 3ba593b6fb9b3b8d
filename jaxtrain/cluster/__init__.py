"""The processes of a multi-host run: detecting them, joining them, and stopping all when one fails."""
