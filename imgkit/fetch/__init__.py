"""Downloads: capped, verified, and kept in a content-addressed cache."""
