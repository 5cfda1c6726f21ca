"""The restricted network: a network of a guest that reaches the hosts on an allowlist only (docs/network.md)."""
