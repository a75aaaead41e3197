"""Every error this platform raises on purpose.

    MVFoulError
    ├── LabelError          an annotation or prediction holds a label outside the two vocabularies
    ├── ClipSpecError       a clip specification contradicts itself
    ├── InvalidClipError    bytes or a file that cannot become the frames of a clip specification
    ├── AnnotationError     annotations.json, or the data set's layout, is not the official one
    ├── ConfigError         a flag or a combination of flags is refused
    ├── DownloadError       a file of the data set cannot be fetched, or is not what its publisher says
    ├── UnreachableError    something on the network cannot be had now, and perhaps a minute later
    ├── CheckpointError     a .pth.tar is damaged, foreign, or of another architecture
    ├── DivergedError       the loss of a training run is no longer a number
    ├── OutOfMemoryError    a step of training needs more memory than there is
    ├── LostRankError       another process of a training run ended without a word
    ├── ArtifactError       an export directory is incomplete, damaged, or made for something else
    ├── PlanError           no TensorRT plan can be built here, or TensorRT failed to build it
    └── ServiceError        a server did not answer a request (each has one gRPC and one HTTP status)
        ├── RequestError          the request breaks the contract; do not repeat it
        │   ├── UnknownModelError     it asks for a model or version that is not served
        │   └── RequestTooLargeError  it is over the size limit
        ├── UnauthenticatedError  the request has no token, or one that the server does not know
        ├── ClientGoneError       the client hung up; nobody sees this
        ├── OverloadedError       too many requests in flight; repeat it later
        └── UnavailableError      not reachable, starting, stopping, or too slow; repeat it later or elsewhere
            └── DeadlineError         the answer did not come before the request's deadline

Each message names the value, the place and the cure. Command-line tools print the message and exit with `exit_code`;
only errors that are bugs show a traceback.
"""

from __future__ import annotations


class MVFoulError(Exception):
    """Base of all errors that a user can cure."""

    exit_code = 2


class LabelError(MVFoulError, ValueError):
    """A label is not one of the two vocabularies."""


class ClipSpecError(MVFoulError, ValueError):
    """A clip specification contradicts itself."""


class InvalidClipError(MVFoulError, ValueError):
    """A clip is unusable: not a video, damaged, too short or over a limit. Retrying does not help."""


class AnnotationError(MVFoulError, ValueError):
    """The data set does not have the official layout."""


class ConfigError(MVFoulError, ValueError):
    """A flag, or a combination of flags, is refused."""


class CheckpointError(MVFoulError, ValueError):
    """A checkpoint cannot be used for what was asked."""


class DivergedError(MVFoulError):
    """The loss is NaN or infinite; training cannot go on."""

    exit_code = 1


class OutOfMemoryError(MVFoulError):
    """A step of training needs more memory than there is."""

    exit_code = 1


class LostRankError(MVFoulError):
    """Another process of the same run is gone; starting all of them again with --resume helps."""

    exit_code = 75  # as after a preemption (mvfoul.command.PREEMPTED): the reason is where the other process ran


class DownloadError(MVFoulError):
    """A file of the data set cannot be fetched, or is not what its publisher says."""


class UnreachableError(MVFoulError):
    """Something on the network cannot be had; nothing is wrong with what was asked, so a scheduler may try again."""

    exit_code = 1


class ArtifactError(MVFoulError, ValueError):
    """An export directory cannot be served."""


class PlanError(MVFoulError):
    """There is no TensorRT plan: nothing to build it with, or its builder failed."""

    exit_code = 4


class ServiceError(MVFoulError):
    """A server did not answer a request, for a reason that is not one of the classes below."""

    exit_code = 5


class RequestError(ServiceError, ValueError):
    """A request breaks the server's contract. Retrying does not help."""

    exit_code = 2


class UnknownModelError(RequestError):
    """A request names a model, or a version of it, that is not served."""


class RequestTooLargeError(RequestError):
    """A request is over the server's size limit."""


class UnauthenticatedError(ServiceError):
    """A request proves no client that the server knows. Give the right token; retrying does not help."""

    exit_code = 2


class ClientGoneError(ServiceError):
    """The client hung up before its answer."""


class OverloadedError(ServiceError):
    """The server has as many requests in flight as it accepts. Retry with backoff."""

    exit_code = 4


class UnavailableError(ServiceError):
    """The server cannot be reached, is starting or stopping, or did not answer in time. Retry later."""

    exit_code = 3


class DeadlineError(UnavailableError):
    """The answer did not come before the request's deadline. Allow more time, or retry later."""
