"""Check the npm packages of a payload, and have npm install them in a sandbox."""
