"""What this machine makes of a user's own data: `fastssl bench`."""
