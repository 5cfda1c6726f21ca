"""A sandbox for agents as a container image and as a machine, for the command that the control plane names.

The entrypoint removes the control plane's variables, drops from root to ``agent`` and becomes the agent. On the machine
agentd does the same for every request (docs/reference/entrypoint.md).
"""

extends = "core.py"

name = "sandbox-image"
outputs = ["disk", "oci"]

packages = [
    "curl",
    "git",
    "openssh-client",
    "python3",
]

users = [
    {"name": "agent", "uid": 1000, "home": "/home/agent", "shell": "/bin/bash", "owns": ["/home/agent", "/workspace"]},
]

container = {
    "packages": ["setpriv", "tini"],
    "labels": {
        "org.opencontainers.image.title": "sandbox-image",
        "org.opencontainers.image.description": "A sandbox for agents: git, Python and Node.js on Alpine Linux",
    },
}
