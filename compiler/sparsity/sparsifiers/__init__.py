"""Ways to choose which weights stay, and what to do to those that do; and how much each layer should lose."""
