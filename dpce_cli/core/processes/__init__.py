"""What one process knows of the others, and of the machine it runs on."""
