"""OpenRC's dependency tree against what OpenRC's own rules say; the real OpenRC compares in test_image.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from imgkit.rootfs.openrc import depends, deptree
from imgkit.rootfs.openrc.depends import ServiceDeclaration
from imgkit.rootfs.scripts.words import Unsupported
from imgkit.tree import File, Slice, Tree

RUN = "#!/sbin/openrc-run\n"


def tree_with(scripts: dict[str, str], **files: str) -> Tree:
    """Service scripts, and other files by their path below etc (dots for slashes where a name needs them)."""
    tree = Tree()
    for folder in ("etc", "etc/init.d", "etc/conf.d", "etc/rc.conf.d", "var", "var/cache"):
        tree.mkdir(folder)
    for name, text in scripts.items():
        tree.write(f"etc/init.d/{name}", RUN + text, mode=0o755, mtime=100)
    for path, text in files.items():
        tree.write(f"etc/{path.replace('__', '/').replace('_', '.')}", text, mtime=100)
    return tree


def declared(script: str, **files: str) -> list[tuple[str, tuple[str, ...]]]:
    (service,) = depends.declarations(tree_with({"one": script}, **files))
    return list(service.declared)


def test_what_a_script_declares() -> None:
    script = """
name="x"
description="${name} and more"
depend() {
    local more=""
    need a b; after *
    [ -n "$wanted" ] && want $wanted
    if yesno $switch; then use on; else use off; fi
    if yesno named; then provide p; fi
    for kind in $(fstabinfo -o -t nfs,nfs4); do
        case $kind in noauto) ;; *) more="$more nfs" ;; esac
    done
    want $more
    config /etc/fstab
    keyword -lxc
}
start() {
    echo $((1 + 1)) &
}
"""
    conf = 'wanted="w1 w2"\nswitch=YES\nnamed=on\nrc_need=net\n'
    fstab = "# x\nhost:/ /mnt nfs ro 0 0\n/dev/vda / ext4 rw 0 1\n"
    expected = [
        ("ineed", ("a", "b")),
        ("iafter", ("one",)),
        ("iwant", ("w1", "w2")),
        ("iuse", ("on",)),
        ("iprovide", ("p",)),
        ("iwant", ("nfs",)),
        ("config", ("/etc/fstab",)),
        ("keyword", ("-lxc",)),
        ("ineed", ("net",)),
    ]
    assert declared(script, conf_d__one=conf, fstab=fstab) == expected


def test_the_configuration_of_all_and_of_one() -> None:
    files = {"rc_conf": 'rc_one_use="u"\nA=1\n', "rc_conf_d__z_conf": "A=2\n"}
    assert declared('depend() { need "x$A"; }', **files) == [("ineed", ("x2",)), ("iuse", ("u",))]


def test_files_that_scripts_read() -> None:
    tree = tree_with({"one": '. "$RC_LIBEXECDIR"/sh/more.sh\ndepend() { need $more; }'})
    for folder in ("usr", "usr/libexec", "usr/libexec/rc", "usr/libexec/rc/sh"):
        tree.mkdir(folder)
    tree.write("usr/libexec/rc/sh/more.sh", "more=x\nhelp() {\n\techo $((1))\n}\n")
    assert [service.declared for service in depends.declarations(tree)] == [(("ineed", ("x",)),)]


def test_files_that_are_no_services() -> None:
    tree = tree_with({"one": ""})
    tree.write("etc/init.d/.hidden", RUN, mode=0o755)
    tree.write("etc/init.d/plain", RUN, mode=0o644)
    tree.write("etc/init.d/other", "#!/bin/sh\nrm -rf /\n", mode=0o755)
    tree.symlink("etc/init.d/gone", "/nowhere")
    assert [service.name for service in depends.declarations(tree)] == ["one"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("depend() {\n\tneed $(uname -r)\n}\n", "one, line 3: the command uname"),
        ("helper() {\n\tneed x\n}\ndepend() { helper; }\n", "the command helper-of-the-service"),
        ("depend() { keyword -containers; }", "keyword -containers"),
        ("supervisor=s6", "supervisor s6"),
        ("false", "fails"),
        ("exit 1", "a script that ends early"),
        ("depend() { depend; }", "deeper"),
        ("x=$((1))", "arithmetic"),
        ("start() {\n\tfoo\n\t}\n\ndepend() {\n\tneed net\n}\n", "the function start without an end"),
        ("depend() { rc-service --exists foo && need foo; }", "the command rc-service"),
        ("depend() { [ -e /run/x ] || need x; }", "use of /run/x"),
        ("depend() { use $RC_RUNLEVEL; }", "the variable RC_RUNLEVEL"),
        (". /lib/missing.sh", ". /lib/missing.sh"),
        ("rc_after='*'", "the pattern * for after"),
        ("break", "a script that ends early"),
        ("for x in ${y:?}; do need $x; done", "a script that ends early"),
    ],
)
def test_what_cannot_be_computed_is_refused(script: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    tree = tree_with({"one": script, "two": ""})
    with pytest.raises(Unsupported, match=r"/etc/init\.d/one") as caught:
        depends.declarations(tree)
    assert reason in str(caught.value)
    before = set(tree)
    with caplog.at_level("INFO", "imgkit"):
        assert not deptree.install_cache(tree, epoch=1)
    assert "at every boot: /etc/init.d/one" in caplog.text
    assert set(tree) == before


ENDLESS = {
    "a loop": ("while :; do :; done", "takes more than"),
    "functions": ("a() { #\n" * 3000, "nesting deeper"),
    "comments behind functions": ("a() { # comment\n" * 3000 + "}\n", "the function a without an end"),
    "names": ("depend() { need " + "x " * 201 + "; }", "more than 200 names"),
    "a large script": ("# comment\n" * 30_000, "more than 256 KiB"),
    "a large configuration": (". /etc/large", "needs more than"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_service_that_never_ends_is_left_to_the_guest(name: str, caplog: pytest.LogCaptureFixture) -> None:
    script, reason = ENDLESS[name]
    tree = tree_with({"one": script})
    tree.add("etc/large", File(content=Slice(Path("/nowhere"), 0, 1 << 40)))
    started = time.process_time()
    with caplog.at_level("INFO", "imgkit"):
        assert not deptree.install_cache(tree, epoch=1)
    assert reason in caplog.text
    assert time.process_time() - started < 60


def test_all_services_together_have_an_end() -> None:
    script = f"for a in {'1 ' * 300}; do for b in {'1 ' * 100}; do :; done; done\n"
    with pytest.raises(Unsupported, match="takes more than 16000000 steps"):
        depends.declarations(tree_with({f"s{number}": script for number in range(20)}))
    with pytest.raises(Unsupported, match="more than 1000 services"):
        depends.declarations(tree_with({f"s{number}": "" for number in range(1001)}))


def test_services_in_a_place_of_their_own() -> None:
    tree = tree_with({"one": ""})
    for folder in ("usr", "usr/local", "usr/local/etc", "usr/local/etc/init.d"):
        tree.mkdir(folder)
    assert not deptree.install_cache(tree, epoch=1)


def rendered(**services: list[tuple[str, str]]) -> list[str]:
    """Return the tree's lines for services given by (kind, names) pairs, keywords left out."""
    known = [
        ServiceDeclaration(name, tuple((kind, tuple(names.split())) for kind, names in pairs))
        for name, pairs in services.items()
    ]
    return deptree.render(deptree.resolve(known)).splitlines()


def test_relations_are_seen_from_both_ends() -> None:
    assert rendered(a=[("ineed", "b gone"), ("iprovide", "p a"), ("iuse", "x.sh")], b=[("iafter", "p")]) == [
        "depinfo_0_service='a'",
        "depinfo_0_ineed_0='b'",
        "depinfo_0_ineed_1='gone'",
        "depinfo_0_iprovide_0='p'",
        "depinfo_0_broken_0='gone'",
        "depinfo_1_service='b'",
        "depinfo_1_iafter_0='p'",
        "depinfo_1_needsme_0='a'",
        "depinfo_2_service='p'",
        "depinfo_2_providedby_0='a'",
        "depinfo_2_ibefore_0='b'",
    ]


def test_the_last_word_about_an_order_holds_and_a_dependency_beats_it() -> None:
    assert "depinfo_0_iafter_0='b'" in rendered(a=[("ibefore", "b"), ("iafter", "b")], b=[])
    assert not any("ibefore" in line for line in rendered(a=[("ibefore", "b"), ("ineed", "b")], b=[]))
    assert rendered(a=[("ineed", "b"), ("ineed", "!b")], b=[]) == ["depinfo_0_service='a'", "depinfo_1_service='b'"]
    circle = rendered(a=[("ineed", "b")], b=[("iafter", "a")])
    assert circle == [
        "depinfo_0_service='a'",
        "depinfo_0_ineed_0='b'",
        "depinfo_1_service='b'",
        "depinfo_1_needsme_0='a'",
    ]


def test_the_cache_is_as_new_as_what_it_was_made_from() -> None:
    tree = tree_with({"one": "depend() { config /etc/x; }"})
    tree.write("etc/conf.d/late", "", mtime=500)
    assert deptree.install_cache(tree, epoch=300)
    assert tree["var/cache/rc/deptree"].mtime == 500
    assert tree.text("var/cache/rc/depconfig") == "/etc/x\n"
    assert tree.text("var/cache/rc/deptree") == "depinfo_0_service='one'\n"
    assert not deptree.install_cache(Tree(), epoch=1), "no OpenRC"
