"""Runlevel links."""

from __future__ import annotations

import pytest

from imgkit.errors import RecipeError
from imgkit.rootfs import services
from imgkit.tree import Symlink, Tree


def base() -> Tree:
    tree = Tree()
    for name in ("agentd", "networking", "sysctl"):
        tree.write(f"etc/init.d/{name}", "#!/sbin/openrc-run\n", mode=0o755)
    tree.write("etc/init.d/README", "no service")
    tree.write("etc/init.d/functions.sh", "no service", mode=0o755)
    for level in ("boot", "default", "sysinit"):
        tree.mkdir(f"etc/runlevels/{level}")
    return tree


def test_enable_links_to_the_script() -> None:
    tree = base()
    services.enable(tree, "default", "agentd", epoch=7)
    services.enable(tree, "default", "agentd", epoch=8)
    assert tree["etc/runlevels/default/agentd"] == Symlink(target="/etc/init.d/agentd", mtime=7)
    assert services.runlevels(tree) == {"boot": [], "default": ["agentd"], "sysinit": []}


def test_services_are_the_executable_scripts() -> None:
    assert services.services(base()) == ["agentd", "networking", "sysctl"]


def test_unknown_service_is_refused_with_near_misses() -> None:
    tree = base()
    with pytest.raises(RecipeError, match="agend: no such service") as refusal:
        services.enable(tree, "default", "agend")
    assert refusal.value.hint == "did you mean agentd?"
    with pytest.raises(RecipeError) as refusal:
        services.enable(tree, "default", "README")
    assert refusal.value.hint == "the package that has it may be missing"
    assert dict(tree.items()) == dict(base().items())


@pytest.mark.parametrize("level", ["defualt", "", "../init.d", "nope"])
def test_unknown_runlevel_is_refused(level: str) -> None:
    with pytest.raises(RecipeError, match="no such runlevel"):
        services.enable(base(), level, "agentd")


def test_disable() -> None:
    tree = base()
    services.enable(tree, "boot", "sysctl")
    services.disable(tree, "boot", "sysctl")
    assert "etc/runlevels/boot/sysctl" not in tree
    with pytest.raises(RecipeError, match="sysctl: not in runlevel boot"):
        services.disable(tree, "boot", "sysctl")
