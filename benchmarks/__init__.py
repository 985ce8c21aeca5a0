"""What the pooling costs, side by side with its alternatives; each module is a command."""
