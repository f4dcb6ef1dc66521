"""What the strategies cost, measured beside what a user would otherwise run."""
