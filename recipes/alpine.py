"""The agent sandbox: the system of core.py, and the tools that agents expect of a Linux system."""

extends = "core.py"

packages = [
    "coreutils",
    "curl",
    "file",
    "findutils",
    "gawk",
    "git",
    "grep",
    "gzip",
    "jq",
    "less",
    "openssh-client",
    "py3-pip",
    "python3",
    "ripgrep",
    "sed",
    "tar",
    "tree",
    "unzip",
    "util-linux",
    # Parts of util-linux that would replace busybox's: they are set-uid, and this mount resolves its target once more,
    # where agentd names an open folder (/proc/PID/fd/N) that cannot be replaced meanwhile.
    "!mount",
    "!umount",
]
