"""What the essay's experiments share."""
