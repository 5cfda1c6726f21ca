"""One repository of a registry: requests that are authorized, repeated if they may be, and checked.

The paths are those of distribution-spec 1.1, "Endpoints".
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from imgkit.fetch.checks import TransientError, looks_like_html
from imgkit.oci import mediatypes
from imgkit.oci.descriptors import Descriptor
from imgkit.oci.documents import MAX_DOCUMENT
from imgkit.oci.imagename import DOCKER_HUB, ImageName
from imgkit.registry.access import RegistryAccess
from imgkit.registry.httpcalls import Answer, Body, BodySink, HttpCall
from imgkit.registry.logins import find_login
from imgkit.registry.registryerrors import BusyError, DeniedError, RegistryError, check_answer, refusal, web_page
from imgkit.registry.tokens import PULL, PUSH, Authorizer, scope
from imgkit.registry.wire import Wire, origin

log = logging.getLogger("imgkit.registry")

T = TypeVar("T")
_HUB_HOST = "registry-1.docker.io"
_MAX_ROUNDS = 3  # how often one request may be answered 401
_MAX_PAUSE = 30.0
_DOCUMENTS = (mediatypes.INDEX, mediatypes.MANIFEST, mediatypes.DOCKER_INDEX, mediatypes.DOCKER_MANIFEST)
_OLD_MANIFESTS = "application/vnd.docker.distribution.manifest.v1"


def patiently(work: Callable[[], T], access: RegistryAccess, cancelled: threading.Event) -> T:
    """Do ``work``, and again after a pause if it fails in a way that may pass.

    The pauses double, and are at least what the server asks for (``Retry-After``, at most a minute).

    Raises:
        ImgkitError: ``work`` failed in another way, or every time.
    """
    for number in range(access.attempts):
        try:
            return work()
        except TransientError as fault:
            if number == access.attempts - 1 or cancelled.is_set():
                raise fault.error from fault.__cause__
            pause = pause_before(number, fault, access)
            log.info("trying again in %.1f s: %s", pause, fault.error)
            cancelled.wait(pause)
    raise AssertionError("at least one attempt is made")


def pause_before(number: int, fault: TransientError, access: RegistryAccess) -> float:
    """Return the seconds to wait after attempt ``number``, which counts from zero."""
    asked = fault.retry_after if isinstance(fault, BusyError) else 0.0
    return max(asked, min(access.pause * float(2**number), _MAX_PAUSE))


class RemoteRepository:
    """A repository of a registry; several threads may use it.

    Args:
        name: the registry and the repository; tag and digest do not matter.
        wire: makes the requests.

    Attributes:
        takes_chunks: False once it has refused to take a blob in chunks.
    """

    def __init__(self, name: ImageName, access: RegistryAccess, wire: Wire) -> None:
        self.name = name
        self.access = access
        self.takes_chunks = True
        self._wire = wire
        self._host = _HUB_HOST if name.registry == DOCKER_HUB else name.registry
        self._auth = Authorizer(
            name.registry, lambda: find_login(name, access), self._send_for_token, insecure=access.insecure
        )

    def request(
        self,
        method: str,
        place: str,
        good: Sequence[int],
        *,
        cancelled: threading.Event,
        actions: str = PULL,
        source: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        limit: int = MAX_DOCUMENT,
        sink: BodySink | None = None,
        patience: float | None = None,
        what: str = "",
        once: bool = False,
    ) -> Answer:
        """Make a request and check its status.

        Args:
            place: an absolute URL of this registry, or what follows ``/v2/NAME/``.
            good: the statuses that are not failures.
            actions: what the request does to the repository, :data:`~imgkit.registry.tokens.PULL` or ``PUSH``.
            source: another repository that the request reads; empty if there is none.
            headers, body, limit, sink, patience: as for :class:`~imgkit.registry.wire.HttpCall`.
            what: what the request is about, for messages.
            once: raise TransientError instead of repeating the request.

        Raises:
            TransientError: a failure that may pass, if ``once`` is set.
            RegistryError: the registry refuses; the subclass says how.
            InputError: the registry cannot be reached, or the answer is not valid.
        """
        call = HttpCall(
            method=method,
            url=self.url(place, cancelled),
            headers=headers or {},
            body=body,
            limit=limit,
            sink=sink,
            patience=patience,
        )
        scopes = [scope(self.name.repository, actions), *([scope(source, PULL)] if source else [])]

        def attempt() -> Answer:
            """Make the request once."""
            answer = self._authorized(call, scopes, cancelled)
            check_answer(answer, *good, what=what)
            return answer

        return attempt() if once else patiently(attempt, self.access, cancelled)

    def beside(self, name: ImageName) -> RemoteRepository:
        """Return another repository, which uses the same connections."""
        return RemoteRepository(name, self.access, self._wire)

    def url(self, place: str, cancelled: threading.Event) -> str:
        """Return the absolute URL of a place; see :meth:`request`."""
        if place.startswith(("http://", "https://")):
            return place
        return f"{self._wire.base(self._host, cancelled)}/v2/{self.name.repository}/{place}"

    def _authorized(self, call: HttpCall, scopes: Sequence[str], cancelled: threading.Event) -> Answer:
        """Make a request, as often as the registry asks for further proof."""
        for _ in range(_MAX_ROUNDS):
            used = self._auth.header(scopes)
            answer = self._wire.exchange(replace(call, authorization=used), cancelled)
            if answer.status != 401 or origin(answer.url) != origin(call.url):
                return answer
            self._auth.challenged(answer.headers.get("WWW-Authenticate", ""), scopes, used)
        last = refusal(answer)
        raise DeniedError(f"{last.message} (again and again, whatever token it is shown)", hint=last.hint)

    def _send_for_token(self, call: HttpCall) -> Answer:
        """Make a request to a token service."""
        never = threading.Event()

        def attempt() -> Answer:
            answer = self._wire.exchange(call, never)
            check_answer(answer, 200, *range(400, 429), *range(430, 500))
            return answer

        return patiently(attempt, self.access, never)

    # ---- documents ---------------------------------------------------------------------------------------------------

    def document(self, reference: str, cancelled: threading.Event) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or the index at a tag or a digest.

        Raises:
            MissingImageError: there is none.
            RegistryError: it is no manifest, or has another digest than it must have.
        """
        what = f"{self.name.full_repository}{'@' if ':' in reference else ':'}{reference}"
        accept = {"Accept": ", ".join(_DOCUMENTS)}
        answer = self.request("GET", f"manifests/{reference}", (200,), cancelled=cancelled, headers=accept, what=what)
        kind = _media_type(answer, what)
        algorithm = reference.partition(":")[0] if ":" in reference else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, answer.data).hexdigest()}"
        if ":" in reference and digest != reference:
            raise RegistryError(f"{what}: the registry sent a document with the digest {digest}")
        check_digest(answer, digest, what)
        return Descriptor(kind, digest, len(answer.data)), answer.data

    def has_document(self, digest: str, cancelled: threading.Event) -> bool:
        """Ask whether the repository has a manifest or an index."""
        what, accept = f"{self.name.full_repository}@{digest}", {"Accept": ", ".join(_DOCUMENTS)}
        answer = self.request(
            "HEAD", f"manifests/{digest}", (200, 404), cancelled=cancelled, actions=PUSH, headers=accept, what=what
        )
        check_digest(answer, digest, what)
        return answer.status == 200

    def digest_at(self, reference: str, cancelled: threading.Event) -> str:
        """Return what the registry says is the digest at a tag; empty if it does not say it.

        Raises:
            MissingImageError: there is no such tag.
        """
        what, accept = f"{self.name.full_repository}:{reference}", {"Accept": ", ".join(_DOCUMENTS)}
        place = f"manifests/{reference}"
        answer = self.request("HEAD", place, (200,), cancelled=cancelled, headers=accept, what=what)
        return answer.headers.get("Docker-Content-Digest", "").strip()

    def put_document(self, reference: str, descriptor: Descriptor, data: bytes, cancelled: threading.Event) -> bool:
        """Store a manifest or an index under a tag or its digest.

        Returns:
            Whether the registry has taken note of the document's subject, if that has one.

        Raises:
            RegistryError: the registry refuses it, or says that it has another digest.
        """
        what = f"{self.name.full_repository}{'@' if ':' in reference else ':'}{reference}"
        answer = self.request(
            "PUT",
            f"manifests/{reference}",
            (200, 201, 202),
            cancelled=cancelled,
            actions=PUSH,
            headers={"Content-Type": descriptor.media_type},
            body=data,
            patience=self.access.commit_timeout,
            what=what,
        )
        check_digest(answer, descriptor.digest, what)
        return bool(answer.headers.get("OCI-Subject"))


def check_digest(answer: Answer, digest: str, what: str) -> None:
    """Compare what a registry says about a digest (``Docker-Content-Digest``), if it says it.

    Raises:
        RegistryError: it names another digest.
    """
    said = answer.headers.get("Docker-Content-Digest", "").strip()
    if said and said != digest and said.partition(":")[0] == digest.partition(":")[0]:
        raise RegistryError(f"{what}: the registry says that the digest is {said[:80]!r}, but it is {digest}")


def _media_type(answer: Answer, what: str) -> str:
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in _DOCUMENTS:
        return kind
    if looks_like_html(answer.data):
        raise web_page(what)
    if kind.startswith(_OLD_MANIFESTS):
        message = f"{what}: is a manifest of schema version 1, which Docker gave up in 2019"
        raise RegistryError(message, hint="push the image anew with a newer program")
    raise RegistryError(f"{what}: has the media type {kind[:80]!r}, which is not one of an image")
