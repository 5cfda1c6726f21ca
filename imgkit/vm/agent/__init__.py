"""The agentd contract on the host: requests, events, and the two transports that carry them."""
