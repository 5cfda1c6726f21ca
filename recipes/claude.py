"""The sandbox of alpine.py with an agent in it: the Claude agent SDK (docs/howto/claude.md)."""

extends = "alpine.py"

name = "claude"

# agentd starts this as the unprivileged user, once for each prompt.
agent = {"payload": "../agents/claude", "command": ["/usr/bin/node", "/opt/agent/index.js"]}
