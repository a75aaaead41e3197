"""Ask a server for decisions, from Python or from a shell.

    from serving.client import FoulClient

    with FoulClient("127.0.0.1:8081") as client:
        decision = client.classify([Path("clip_0.mp4").read_bytes(), Path("clip_1.mp4").read_bytes()])
        print(decision.action.label, decision.offence_severity.label)

    python -m serving.client clip_0.mp4 clip_1.mp4      (`serving.client.command`)

`AsyncFoulClient` has the same methods as coroutines. Needs `tritonclient[grpc]` only. That library and `kserve` cannot
be imported in one process (both register the same protobuf messages), so nothing of the server is imported here.
"""

from serving.client.clients import AsyncFoulClient, FoulClient
from serving.client.connection import Tls
from serving.client.decision import Decision, HeadDecision, ModelInfo, SessionInfo, TensorInfo
from serving.client.question import Priority

__all__ = [
    "AsyncFoulClient",
    "Decision",
    "FoulClient",
    "HeadDecision",
    "ModelInfo",
    "Priority",
    "SessionInfo",
    "TensorInfo",
    "Tls",
]
