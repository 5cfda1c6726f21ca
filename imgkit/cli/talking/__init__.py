"""What a request shows on the terminal, and who answers the questions of its agent."""
