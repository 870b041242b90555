"""Studies of the monitoring methods."""
