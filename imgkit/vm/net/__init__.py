"""The restricted network: a guest reaches the hosts on an allowlist only (docs/reference/network.md)."""
