"""The base of a root filesystem as a Tree: Alpine's minirootfs, or a container image. Both are verified."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgkit.apk.signature import Keyring
from imgkit.errors import InputError
from imgkit.fetch.cache import Cache, Wanted, hash_file
from imgkit.fetch.checks import wrong_hash
from imgkit.fetch.openpgp import Certificate, alpine_certificate, read_certificate, verify_detached
from imgkit.fetch.releases import MINIROOTFS, Release, newest_minirootfs
from imgkit.host.jsonfile import read_bytes
from imgkit.planning.freshness import Freshness, release_of
from imgkit.planning.furtherrepositories import FurtherRepositories, further_repositories
from imgkit.planning.plan import Artefact, ImageSource, Plan
from imgkit.planning.unpackedbase import unpacked_base
from imgkit.planning.vouched import Vouched, recall, remember
from imgkit.recipe import Recipe
from imgkit.tree import File, Tree

if TYPE_CHECKING:
    from imgkit.planning.baseimage import BaseImage
    from imgkit.registry.access import RegistryAccess

_KEYS = "etc/apk/keys"
_MAX_LISTING = 1 << 18
_MAX_SIGNATURE = 1 << 16
_MAX_CERTIFICATE = 1 << 20
_MAX_MINIROOTFS = 64 << 20


@dataclass(frozen=True)
class Base:
    """A verified minirootfs or image.

    Attributes:
        version: of Alpine: the release by which a minirootfs is listed, ``3.23.6``, or what an image says of itself;
            empty for an image of something else.
        artefact: where it is from.
        tree: its contents.
        keyring: the keys in it, which are trusted to sign indexes and packages.
        image: the image and its layers; None for a minirootfs.
        further: the recipe's repositories besides those of the branch, which have keys of their own.
    """

    version: str
    artefact: Artefact | ImageSource
    tree: Tree
    keyring: Keyring
    image: BaseImage | None = None
    further: FurtherRepositories = field(default_factory=FurtherRepositories)

    def keyring_of(self, url: str) -> Keyring:
        """Return the keys that are trusted to sign a file: an index, or a package."""
        return self.further.keyring_of(url, self.keyring)

    @property
    def signer(self) -> str:
        """What the signed files of a mirror are remembered under: who signed the minirootfs, or the image's keys."""
        return self.artefact.vouched_by if self.image is None else f"an image with the keys {self.keyring}"


def fetch_base(
    recipe: Recipe,
    arch: str,
    cache: Cache,
    spool: Path,
    *,
    locked: Plan | None = None,
    allow_stale: bool = False,
    access: RegistryAccess | None = None,
) -> Base:
    """Find, download, verify and unpack the minirootfs, or the image that the recipe starts from.

    Args:
        spool: a new file, which takes its contents. An archive of an image is unpacked beside it.
        locked: take the minirootfs or the image of this plan; a signature is verified as well.
        allow_stale: warn of what :mod:`imgkit.planning.freshness` would refuse.
        access: how registries are reached; None takes the defaults.

    Raises:
        InputError: the mirror does not have the minirootfs, or the registry does not have the image; or it cannot be
            trusted. Or the key of a further repository is not a key.
    """
    further = further_repositories(recipe, recipe.architecture(arch).alpine)
    base = _fetch_base(recipe, arch, cache, spool, locked, access=access, allow_stale=allow_stale)
    return replace(base, further=further)


def _fetch_base(
    recipe: Recipe,
    arch: str,
    cache: Cache,
    spool: Path,
    locked: Plan | None,
    *,
    access: RegistryAccess | None,
    allow_stale: bool,
) -> Base:
    if recipe.base is not None:
        return _fetch_image(recipe, recipe.base, arch, cache, spool, _locked_image(locked), access=access)
    release, url = _newest(recipe, recipe.architecture(arch).alpine, cache) if locked is None else _locked(locked)
    archive, signer = _verified(recipe, release, url, cache, known=locked is not None)
    artefact = Artefact(url, archive.stat().st_size, hash_file(archive), f"OpenPGP {signer}")
    tree = unpacked_base(archive, artefact.sha256, cache.folder, spool)
    base = Base(release.version, artefact, tree, _keys_in(tree, release.file))
    freshness = freshness_of(recipe, arch, base, cache, allow_stale=allow_stale)
    chosen = locked is not None or recipe.version is not None
    freshness.check_minirootfs(url, release.version, chosen=chosen)
    return base


def _fetch_image(
    recipe: Recipe,
    base: str,
    arch: str,
    cache: Cache,
    spool: Path,
    locked: ImageSource | None,
    *,
    access: RegistryAccess | None,
) -> Base:
    """Find and unpack the image that a recipe starts from. What only images need is imported here."""
    from imgkit.planning.baseimage import PLATFORMS, open_base, usable_tree
    from imgkit.planning.imagestore import find_image
    from imgkit.recipe.basereference import BaseReference

    platform, layout = PLATFORMS[recipe.architecture(arch).alpine], spool.with_name(f"{spool.name}-layout")
    found = find_image(BaseReference.parse(base), platform, cache, layout, locked=locked, access=access)
    image = open_base(found, platform, spool)
    return _image_base(image, usable_tree(image, keep_privileges=recipe.base_setuid == "keep"))


def _verified(recipe: Recipe, release: Release, url: str, cache: Cache, *, known: bool) -> tuple[Path, str]:
    """Fetch a minirootfs and verify its signature.

    Args:
        known: whether the hash of the file is that of a lock. Then a signature that was verified before is verified
            again in place of the mirror's, if the recipe names no other certificate.

    Returns:
        The file, and the fingerprint of the certificate that signed it.
    """
    wanted, beside = _wanted(release, url)
    before = recall(cache.folder, release.sha256) if known else None
    if before is not None and (recipe.release_key is None or certificate_of(recipe).data == before.certificate.data):
        with suppress(InputError):  # then everything is taken from the mirror, or named as missing
            archive = cache.fetch(wanted, description="minirootfs")
            return archive, verify_detached(archive, before.signature, before.certificate, name=release.file)
    archive, signature = cache.fetch_all((wanted, beside), description="minirootfs")
    _check_sha512(archive, release, url)
    vouched = Vouched(signature.read_bytes(), certificate_of(recipe))
    signer = verify_detached(archive, vouched.signature, vouched.certificate, name=release.file)
    remember(cache.folder, hash_file(archive), vouched)
    return archive, signer


def _locked_image(locked: Plan | None) -> ImageSource | None:
    """Return the image of a lock, if there is a lock."""
    source = None if locked is None else locked.base
    if isinstance(source, Artefact):
        raise InputError(f"{source.url}: the lock has this minirootfs, but the recipe starts from an image")
    return source


def _image_base(image: BaseImage, tree: Tree) -> Base:
    """Return the base that an image makes, whose usable part is ``tree``."""
    release = release_of(tree)
    if release is None:
        return Base("", image.source, tree, Keyring(), image)
    return Base(release.version, image.source, tree, Keyring.from_files(_key_files(tree)), image)


def certificate_of(recipe: Recipe) -> Certificate:
    """Read the certificate that must have signed the minirootfs: the recipe's, or else Alpine's.

    Raises:
        InputError: the recipe's file cannot be read, or is not an OpenPGP certificate.
    """
    path = recipe.release_key
    if path is None:
        return alpine_certificate()
    return read_certificate(read_bytes(path, _MAX_CERTIFICATE), name=str(path))


def freshness_of(recipe: Recipe, arch: str, base: Base, cache: Cache, *, allow_stale: bool) -> Freshness:
    """Return the checks that the signed files of the recipe's branch must pass."""
    return Freshness(
        cache.folder,
        base.signer,
        recipe.branch,
        recipe.architecture(arch).alpine,
        release_of(base.tree),
        allow=allow_stale,
    )


def _locked(plan: Plan) -> tuple[Release, str]:
    """Return the release that a plan names, and its URL."""
    minirootfs = plan.base
    if isinstance(minirootfs, ImageSource):
        raise InputError(f"{minirootfs.name}: the lock has this image, but the recipe starts from the minirootfs")
    file = minirootfs.url.rpartition("/")[2]
    release = Release(MINIROOTFS, plan.version, file, sha256=minirootfs.sha256, size=minirootfs.size)
    return release, minirootfs.url


def _newest(recipe: Recipe, alpine: str, cache: Cache) -> tuple[Release, str]:
    """Return the release that the mirror's list of releases has for the recipe, and its URL."""
    folder = f"{recipe.mirror.rstrip('/')}/{recipe.branch}/releases/{alpine}"
    listing = f"{folder}/latest-releases.yaml"
    text = cache.fetch(Wanted(url=listing, max_bytes=_MAX_LISTING), description="releases").read_bytes()
    release = _choose(recipe, text, alpine, listing)
    return release, f"{folder}/{release.file}"


def _choose(recipe: Recipe, listing: bytes, alpine: str, name: str) -> Release:
    """Return the release to download. A pinned version that is no longer listed is requested by its usual file name."""
    try:
        return newest_minirootfs(listing, arch=alpine, version=recipe.version, name=name)
    except InputError:
        if recipe.version is None:
            raise
        newest_minirootfs(listing, arch=alpine, name=name)  # what is not a list of releases is still refused
        file = f"{MINIROOTFS}-{recipe.version}-{alpine}.tar.gz"
        return Release(flavor=MINIROOTFS, version=recipe.version, file=file)


def _wanted(release: Release, url: str) -> tuple[Wanted, Wanted]:
    """Return the archive and its signature."""
    archive = Wanted(
        url=url,
        max_bytes=_MAX_MINIROOTFS,
        size=release.size or None,
        sha256=release.sha256 or None,
        gzip=True,
    )
    return archive, Wanted(url=f"{url}.asc", max_bytes=_MAX_SIGNATURE)


def _check_sha512(archive: Path, release: Release, url: str) -> None:
    """Compare the archive with the list's SHA-512. Its SHA-256 was checked as it was downloaded.

    Raises:
        InputError: the archive has another SHA-512.
    """
    if release.sha512 and (actual := hash_file(archive, "sha512")) != release.sha512:
        raise wrong_hash(url, "SHA-512", actual, release.sha512)


def _keys_in(tree: Tree, name: str) -> Keyring:
    """Return the public keys in a minirootfs.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    keys = _key_files(tree)
    if not keys:
        raise InputError(f"{name}: has no keys in /{_KEYS}, so nothing can vouch for packages")
    return Keyring.from_files(keys)


def _key_files(tree: Tree) -> dict[str, bytes]:
    """Return file name → contents of the public keys that apk trusts."""
    return {
        path.rpartition("/")[2]: tree.read(path)
        for path in (tree.children(tree.resolve(_KEYS)))
        if path.endswith(".pub") and isinstance(tree.stat(path), File)
    }
