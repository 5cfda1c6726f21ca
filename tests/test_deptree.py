"""OpenRC's dependency tree against what OpenRC's own rules say; the real OpenRC compares in test_image.py."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from imgkit.errors import RecipeError
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


def test_the_configuration_of_a_service_with_a_dot_in_its_name() -> None:
    """First what the services before the dot share, then its own, then everybody's."""
    tree = tree_with({"net.eth0": "depend() { need $a $b $c; }"})
    tree.write("etc/conf.d/net", "a=net b=net c=net\n")
    tree.write("etc/conf.d/net.eth0", "b=own c=own\n")
    tree.write("etc/rc.conf", "c=all\nrc_net_eth0_use=u\n")
    tree.write("etc/rc.conf.d/later.conf", "c=${c}-later\n")
    tree.write("etc/rc.conf.d/.hidden.conf", "c=hidden\n")
    tree.write("etc/rc.conf.d/other", "c=other\n")
    tree.mkdir("etc/rc.conf.d/folder.conf")
    (service,) = depends.declarations(tree)
    assert service.declared == (("ineed", ("net", "own", "all-later")), ("iuse", ("u",)))


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ("rc_one_need=a\nrc_need=b\n", [("ineed", ("a",))]),
        ("rc_need=b\nRC_ONE_NEED=c\n", [("ineed", ("b",))]),
        ("RC_one_NEED=c\nRC_NEED=d\n", [("ineed", ("c",))]),
        ("RC_NEED='d e'\nrc_config=/f\n", [("config", ("/f",)), ("ineed", ("d", "e"))]),
        ("rc_need=\nRC_NEED=d\n", [("ineed", ("d",))]),
    ],
)
def test_which_setting_of_the_configuration_counts(conf: str, expected: list[tuple[str, tuple[str, ...]]]) -> None:
    assert declared("", conf_d__one=conf) == expected


@pytest.mark.parametrize("pattern", ["a*", "a?", "[a]"])
def test_patterns_in_the_configuration(pattern: str) -> None:
    with pytest.raises(Unsupported) as caught:
        declared("", conf_d__one=f"rc_need='x {pattern}'\n")
    assert caught.value.construct == f"the pattern x {pattern} for need"


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        *((word, True) for word in ("yes", "TRUE", "On", "1")),
        *((word, False) for word in ("no", "false", "Off", "0", "", "other")),
    ],
)
def test_what_means_yes(value: str, holds: bool) -> None:
    """A word, or the name of a variable with that word; a variable named like a word does not count."""
    conf = f"named='{value}'\nno=yes\nyes=no\n"
    expected = [("ineed", ("x",))] if holds else []
    assert declared(f"depend() {{ yesno '{value}' && need x; }}", conf_d__one=conf) == expected
    assert declared("depend() { yesno named && need x; }", conf_d__one=conf) == expected


def test_a_yes_or_no_of_nothing_is_no() -> None:
    assert declared("depend() { yesno || need x; }") == [("ineed", ("x",))]


def test_a_declaration_without_names_fails() -> None:
    assert declared("depend() { need $nothing; use status$?; }") == [("iuse", ("status1",))]
    assert declared("depend() { need $nothing || use x; need a && use y; }") == [
        ("iuse", ("x",)),
        ("ineed", ("a",)),
        ("iuse", ("y",)),
    ]


def test_the_most_names_that_a_service_may_declare() -> None:
    half = ("x",) * 100
    assert declared(f"depend() {{ need {'x ' * 100}; use {'x ' * 100}; }}") == [("ineed", half), ("iuse", half)]
    with pytest.raises(Unsupported, match="more than 200 names"):
        declared(f"depend() {{ need {'x ' * 100}; use {'x ' * 101}; }}")


FSTAB = (
    "# comment of four words\n/dev/a /a nfs ro 0 0\n/dev/b /b nfs4 rw\n"
    "/dev/c /c nfs\n#/dev/d /d nfs no\n/dev/e /e ext4 rw\n\n"
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-o -t nfs,nfs4", ["ro", "rw"]),
        ("-ot nfs4", ["rw"]),
        ("-o -t of", ["failed"]),
        ("-o -t swap", ["failed"]),
    ],
)
def test_options_of_filesystems(words: str, expected: list[str]) -> None:
    """An entry has four words or more. Without an entry the program fails."""
    script = f"depend() {{ need $(fstabinfo {words} || echo failed); }}"
    assert declared(script, fstab=FSTAB) == [("ineed", tuple(expected))]


@pytest.mark.parametrize("words", ["-o", "-t nfs", "-o -t nfs /mnt"])
def test_other_questions_about_filesystems_are_not_answered(words: str) -> None:
    with pytest.raises(Unsupported) as caught:
        declared(f"depend() {{ fstabinfo {words}; }}", fstab=FSTAB)
    assert caught.value.construct == f"fstabinfo {words}"


def test_functions_that_only_start_keep_the_numbers_of_lines() -> None:
    script = "start() {\n\techo $((1))\n}\nstop() {\n}\nstatus() { # nothing\n\n}\nfrobnicate\n"
    with pytest.raises(Unsupported) as caught:
        declared(script)
    assert str(caught.value) == "/etc/init.d/one, line 10: the command frobnicate"


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("true\nsupervisor=s6\n", "/etc/init.d/one, line 3: the supervisor s6"),
        ("true\nfalse\n", "/etc/init.d/one, line 3: a script that fails"),
        ("true\nexit 1\n", "/etc/init.d/one, line 3: a script that ends early"),
        (
            "true\nwhile :; do :; done\n",
            "/etc/init.d/one, line 3: the script takes more than 4000 steps: it may never end",
        ),
    ],
)
def test_where_a_script_is_left_to_the_guest(monkeypatch: pytest.MonkeyPatch, script: str, text: str) -> None:
    monkeypatch.setattr(depends, "MAX_STEPS", 1000)
    with pytest.raises(Unsupported) as caught:
        declared(script)
    assert str(caught.value) == text


def test_which_files_are_services() -> None:
    """Executable for anybody; the interpreter may have another path, or its old name."""
    tree = Tree()
    starts = {
        "one": "#!/usr/sbin/openrc-run\n",
        "two": "#! /sbin/runscript -x\n",
        "three": "#!/sbin/openrc-runner\n",
        "four": "# #!/sbin/openrc-run\n",
    }
    for name, text in starts.items():
        tree.write(f"etc/init.d/{name}", text, mode=0o755)
    for mode in (0o100, 0o010, 0o001, 0o666):
        tree.write(f"etc/init.d/x{mode:03o}", RUN, mode=mode)
    names = [service.name for service in depends.declarations(tree)]
    assert names == ["one", "two", "x001", "x010", "x100"]


def test_a_script_of_the_greatest_size() -> None:
    fill = (256 << 10) - len(RUN)
    assert declared("#" * fill) == []
    with pytest.raises(Unsupported, match="more than 256 KiB"):
        declared("#" * (fill + 1))


def test_as_many_services_as_there_may_be() -> None:
    tree = tree_with({"one": ""})
    for number in range(999):
        tree.write(f"etc/init.d/plain{number}", "")
    assert [service.name for service in depends.declarations(tree)] == ["one"]
    tree.write("etc/init.d/more", "")
    with pytest.raises(Unsupported, match="more than 1000 services"):
        depends.declarations(tree)


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
        (".", ". "),
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
        assert deptree.install_cache(tree, epoch=1) is False
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
def test_a_service_that_never_ends_is_left_to_the_guest(name: str, caplog: pytest.LogCaptureFixture) -> None:
    script, reason = ENDLESS[name]
    tree = tree_with({"one": script})
    tree.add("etc/large", File(content=Slice(Path("/nowhere"), 0, 1 << 40)))
    started = time.process_time()
    with caplog.at_level("INFO", "imgkit"):
        assert deptree.install_cache(tree, epoch=1) is False
    assert reason in caplog.text
    assert time.process_time() - started < 60


@pytest.mark.slow
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
    assert deptree.install_cache(tree, epoch=1) is False


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
    assert deptree.install_cache(Tree(), epoch=1) is False, "no OpenRC"


@pytest.mark.parametrize("path", ["etc/init.d", "etc/conf.d", "etc/rc.conf", "etc/rc.conf.d", "etc/init.d/one"])
def test_the_cache_is_as_new_as_the_newest_of_what_openrc_compares_it_with(path: str) -> None:
    tree = tree_with({"one": ""}, rc_conf="")
    tree.add(path, replace(tree[path], mtime=900))
    tree.symlink("etc/conf.d/dangling", "nowhere")
    assert deptree.install_cache(tree, epoch=300)
    assert {tree[made].mtime for made in ("var/cache/rc", "var/cache/rc/deptree")} == {900}


def test_a_cache_that_is_newer_than_everything_else() -> None:
    tree = tree_with({"one": "depend() { config /etc/x /etc/y; }", "two": "depend() { config /etc/y; need one; }"})
    tree.mkdir("var/cache/rc", mode=0o700, mtime=5)
    assert deptree.install_cache(tree, epoch=300)
    assert {tree[f"var/cache/rc/{name}"].mtime for name in ("deptree", "depconfig")} == {300}
    assert tree.text("var/cache/rc/depconfig") == "/etc/x\n/etc/y\n"
    assert (tree["var/cache/rc"].mode, tree["var/cache/rc"].mtime) == (0o700, 5), "it was there"


def test_services_without_files_of_their_own_have_no_list_of_them() -> None:
    tree = tree_with({"one": "depend() { need two; }"})
    assert deptree.install_cache(tree, epoch=1)
    assert tree.children("var/cache/rc") == ["var/cache/rc/deptree"]


def test_a_name_that_two_services_provide_has_one_entry() -> None:
    assert rendered(a=[("iprovide", "p")], b=[("iprovide", "p")], c=[("iuse", "p p")]) == [
        "depinfo_0_service='a'",
        "depinfo_0_iprovide_0='p'",
        "depinfo_1_service='b'",
        "depinfo_1_iprovide_0='p'",
        "depinfo_2_service='c'",
        "depinfo_2_iuse_0='p'",
        "depinfo_2_iuse_1='p'",
        "depinfo_3_service='p'",
        "depinfo_3_providedby_0='a'",
        "depinfo_3_providedby_1='b'",
        "depinfo_3_usesme_0='c'",
    ]


def test_a_service_and_a_name_that_another_provides_may_be_the_same() -> None:
    lines = rendered(a=[("iprovide", "b")], b=[], c=[("ineed", "b")])
    assert "depinfo_1_needsme_0='c'" in lines
    assert "depinfo_1_providedby_0='a'" in lines
    assert lines[-1] == "depinfo_3_service='b'"


def test_a_service_that_would_never_start_is_refused() -> None:
    tree = tree_with(
        {"clock": "", "osclock": "depend() { provide clock osclock; }", "hwclock": "depend() { provide clock; }"}
    )
    for name in ("boot/osclock", "default/clock"):
        assert deptree.install_cache(tree, epoch=1), "one of the two alone is as it should be"
        tree.symlink(f"etc/runlevels/{name}", f"/etc/init.d/{name.partition('/')[2]}")
    with pytest.raises(RecipeError) as caught:
        deptree.install_cache(tree, epoch=1)
    assert caught.value.message == ("clock: the service osclock provides this name, so OpenRC would never start clock")
    assert caught.value.hint == "give the service another name, or leave one of the two out of services"


@pytest.mark.parametrize("kind", ["ineed", "iwant", "iuse", "iafter"])
def test_a_later_dependency_drops_the_order_that_contradicts_it(kind: str) -> None:
    lines = rendered(a=[("ibefore", "b c"), (kind, "b")], b=[], c=[])
    assert [line for line in lines if "_ibefore_" in line and line.startswith("depinfo_0")] == [
        "depinfo_0_ibefore_0='c'"
    ]


def test_nobody_is_before_what_provides_its_dependency() -> None:
    """a is before p, which b provides, and needs b: only the need is left, at both ends."""
    lines = rendered(a=[("ineed", "b"), ("ibefore", "p")], b=[("iprovide", "p")])
    assert not [line for line in lines if "ibefore" in line or "iafter" in line]
    lines = rendered(a=[("ineed", "b"), ("ibefore", "c")], b=[("iprovide", "p")], c=[])
    assert "depinfo_0_ibefore_0='c'" in lines
    assert "depinfo_2_iafter_0='a'" in lines


def test_a_name_that_is_provided_is_before_what_comes_after_it() -> None:
    lines = rendered(a=[("iprovide", "p"), ("ibefore", "p")], b=[("iafter", "p")])
    assert [line for line in lines if "ibefore" in line] == ["depinfo_2_ibefore_0='b'"]
