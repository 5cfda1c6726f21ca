"""The environment variables that imgkit reads. A test compares them with the code."""

from __future__ import annotations

PRECEDENCE = "An option takes precedence over a variable, and a variable over the recipe."
VARIABLES = (
    (
        "`ALPINE_MIRROR`, `ALPINE_RELEASE_KEY`, `ALPINE_BRANCH`, `ALPINE_VERSION`",
        "the recipe's `mirror`, `release_key`, `branch`, `version`",
    ),
    ("`IMAGE_SIZE`", "its `size`"),
    (
        "`AGENT_RUNNER_BUILD`",
        "its `agent_runner_build`: `0`, `auto`, or `1`, which [runs its code](../howto/payload.md) on the host",
    ),
    ("`ARCHS`", "architectures, with blanks or commas between them, or `all`"),
    ("`OUT_DIR`, `WORK_DIR`", "folder of the results (`out`); folder for scratch files of a build (in the former)"),
    (
        "`INPUT_DIR`, `OUTPUT_BASE`",
        "`publish`: folder of the images (`OUT_DIR`, or `out`); of the versions (`publish`)",
    ),
    (
        "`COWORK_SANDBOX_IMAGE_VERSION`, `COWORK_SANDBOX_BASE_URL`",
        "`publish`: the version; the address of `OUTPUT_BASE`",
    ),
    (
        "`TMPDIR`",
        "folder for temporary files; without it `/tmp`, and `/var/tmp` for what a guest changes on its disk",
    ),
    (
        "`SOURCE_DATE_EPOCH`",
        "seconds since 1970 for what a build generates (default: when the youngest package was built)",
    ),
    (
        "`IMGKIT_ENGINE`",
        "the [engine](../howto/engines.md) that makes disks: `guestfs` (the default), `native`, `auto`",
    ),
    (
        "`IMGKIT_CACHE`",
        "folder of downloads, what builds keep for later ones, and quick appliances (default: the user's cache folder)",
    ),
    (
        "`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`, `SSL_CERT_FILE`",
        "certificates that registries are verified against; of mirrors, the first two",
    ),
    ("`IMGKIT_LAUNCH_TIMEOUT`", "seconds that libguestfs' appliance may take to start, for slow hosts"),
    (
        "`IMGKIT_GUESTFS_PYTHON`",
        "the Python that has libguestfs' bindings (default: this one, the distribution's, or one on `PATH`)",
    ),
    ("`IMGKIT_APPLIANCE`", "`stock` starts libguestfs' own appliance instead of the quick one"),
    ("`IMGKIT_FIRMWARE_ROOT`", "folder below which UEFI firmware is looked up instead of below `/`"),
    (
        "`XDG_RUNTIME_DIR`",
        "folder of the machines that `boot --wait` runs (default: `/run/user/UID`, or the cache); Podman's credentials",
    ),
    (
        "`REGISTRY_AUTH_FILE`, `DOCKER_CONFIG`",
        "`push`, `pull`, bases: where Podman and Docker keep [credentials of registries](../howto/registries.md)",
    ),
    (
        "`SUPERMIN_KERNEL`, `LIBGUESTFS_PATH`",
        "supermin's and libguestfs' own: the appliance's kernel; a fixed appliance",
    ),
    ("`NO_COLOR`", "any value switches colours off ([no-color.org](https://no-color.org))"),
    ("`FORCE_COLOR`, `CLICOLOR_FORCE`", "any value but 0 switches colours on where the output is no terminal"),
    ("`TERM`", "`dumb` is a terminal without colours and without the line that says what is being done"),
)
"""Names and meanings of the environment variables, in Markdown."""
