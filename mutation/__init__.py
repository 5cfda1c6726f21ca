"""Small changes to the code, one at a time, to learn which of them no test notices (docs/development/testing.md)."""
