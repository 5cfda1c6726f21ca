"""The links of services in runlevels."""

from __future__ import annotations

import pytest

from imgkit.errors import RecipeError
from imgkit.recipe import load
from imgkit.rootfs import systemfiles
from imgkit.rootfs.openrc import services
from imgkit.tree import Directory, Symlink, Tree
from tests.images import RECIPE


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
    assert services.available(base()) == ["agentd", "networking", "sysctl"]


@pytest.mark.parametrize(("mode", "there"), [(0o100, True), (0o010, True), (0o001, True), (0o666, False)])
def test_a_script_that_somebody_may_execute_is_a_service(mode: int, there: bool) -> None:
    tree = base()
    tree.write("etc/init.d/one", "#!/sbin/openrc-run\n", mode=mode)
    tree.mkdir("etc/init.d/folder")
    assert ("one" in services.available(tree)) is there
    assert "folder" not in services.available(tree)


def test_a_service_without_a_time_is_enabled_in_1970() -> None:
    tree = base()
    tree.write("etc/runlevels/file", "no runlevel")
    services.enable(tree, "boot", "sysctl")
    assert tree["etc/runlevels/boot/sysctl"].mtime == 0
    assert services.runlevels(tree) == {"boot": ["sysctl"], "default": [], "sysinit": []}


def test_at_most_three_names_are_suggested() -> None:
    tree = base()
    for number in range(1, 6):
        tree.write(f"etc/init.d/tty{number}", "#!/sbin/openrc-run\n", mode=0o755)
    with pytest.raises(RecipeError) as refusal:
        services.enable(tree, "default", "tty")
    assert refusal.value.hint == "did you mean tty5 or tty4 or tty3?"


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
    with pytest.raises(RecipeError, match=r"^sysctl: not in runlevel boot$") as refusal:
        services.disable(tree, "boot", "sysctl")
    assert refusal.value.hint is None
    services.enable(tree, "boot", "sysctl")
    with pytest.raises(RecipeError, match=r"^sysctll: not in runlevel boot$") as refusal:
        services.disable(tree, "boot", "sysctll")
    assert refusal.value.hint == "did you mean sysctl?"
    with pytest.raises(RecipeError, match=r"^sysctl: not in runlevel nope$"):
        services.disable(tree, "nope", "sysctl")


@pytest.mark.parametrize(
    ("agents", "cleaner", "safe"),
    [
        ("sysinit", "boot", False),
        ("sysinit", "default", False),
        ("boot", "default", False),
        ("sysinit", "sysinit", True),
        ("default", "boot", True),
        ("sysinit", "shutdown", True),
        (None, "boot", True),
    ],
)
def test_what_cleans_tmp_as_root_comes_before_agents(agents: str | None, cleaner: str, safe: bool) -> None:
    tree = base()
    tree.write("etc/init.d/bootmisc", "#!/sbin/openrc-run\n", mode=0o755)
    tree.mkdir("etc/runlevels/shutdown")
    if agents:
        services.enable(tree, agents, "agentd")
    services.enable(tree, cleaner, "bootmisc")
    if safe:
        services.refuse_unsafe_order(tree)
        return
    with pytest.raises(RecipeError, match=f"bootmisc: in runlevel {cleaner}, agentd in {agents}: it removes"):
        services.refuse_unsafe_order(tree)


def test_a_recipe_that_has_tmp_cleaned_beside_agents_is_refused() -> None:
    """With agentd in sysinit by the recipe's own word or by a link of the overlay's."""
    tree = base()
    tree.write("etc/init.d/bootmisc", "#!/sbin/openrc-run\n", mode=0o755)
    services.enable(tree, "sysinit", "agentd")
    recipe = load(RECIPE).model_copy(update={"services": {"boot": ("sysctl", "bootmisc")}})
    with pytest.raises(RecipeError, match="bootmisc: in runlevel boot") as refusal:
        systemfiles.enable_services(tree, recipe)
    assert refusal.value.hint == "leave bootmisc out of services; an image needs nothing of it"


def test_folders_for_sockets_are_roots_from_the_start() -> None:
    tree = base()
    tree.mkdir("tmp", mode=0o1777)
    tree.write("etc/shadow", "root:!::0:::::\n")
    systemfiles.configure(tree, load(RECIPE).model_copy(update={"users": ()}), epoch=7)
    for path in ("tmp/.ICE-unix", "tmp/.X11-unix"):
        assert tree[path] == Directory(mode=0o1777, uid=0, gid=0, mtime=7)
