"""The host's side of the agentd contract: requests, events, and the two transports that carry them."""
