"""The pictures of a report: what the network is fed and made of. They answer no question."""
