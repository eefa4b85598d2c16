"""A client made from nothing but the proto files: reflection, create, watch, snapshot, exec, delete, a typed error.

    python client.py PROTO_DIR GENERATED_DIR SOCKET IMAGE
"""

import pathlib
import queue
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

proto, generated, socket, image = sys.argv[1:]

pathlib.Path(generated).mkdir(parents=True, exist_ok=True)
files = sorted(str(file) for file in pathlib.Path(proto).rglob("*.proto"))
well_known = pathlib.Path(protoc.__file__).parent / "_proto"
assert protoc.main(["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={generated}", f"--grpc_python_out={generated}", *files]) == 0
sys.path.insert(0, generated)

from berth.v1 import exec_pb2, sandbox_pb2, sandbox_pb2_grpc, spec_pb2  # noqa: E402

# gRPC's C core sends the path of a Unix socket as authority, which HTTP/2 servers refuse: name one.
channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
expected = {"berth.v1.SandboxService", "berth.v1.ImageService", "berth.v1.NodeService", "grpc.health.v1.Health"}
assert expected <= services, services

sandboxes = sandbox_pb2_grpc.SandboxServiceStub(channel)
changes = sandboxes.Watch(sandbox_pb2.WatchRequest(), timeout=30)
assert next(changes).HasField("synced")

app = spec_pb2.Container(name="app", image=image, command="exec sleep 3600")
app.shutdown_timeout.FromSeconds(1)
spec = spec_pb2.SandboxSpec(containers=[app])
created = sandboxes.Create(sandbox_pb2.CreateRequest(id="job-1", spec=spec), timeout=30).sandbox
assert created.status == sandbox_pb2.SANDBOX_STATUS_RUNNING, created
for change in changes:
    assert change.sandbox.id == "job-1", change
    if change.sandbox.status == sandbox_pb2.SANDBOX_STATUS_RUNNING:
        break

usage = sandboxes.Snapshot(sandbox_pb2.SnapshotRequest(id="job-1"), timeout=30)
assert usage.total.memory_usage > 0, usage
assert [it.name for it in usage.containers] == ["pause", "app"], usage


def run(line):
    start = exec_pb2.ExecStart(id="job-1", argv=["/bin/sh", "-c", line], stdin=True)
    requests = queue.SimpleQueue()
    requests.put(exec_pb2.ExecRequest(start=start))
    return sandboxes.Exec(iter(requests.get, None), timeout=30)


# A program whose caller cancels is ended, and does not take that for the end of its input. It ignores the first signal, and
# would go on for 2 s.
call = run("trap '' HUP; echo $$ >/tmp/pid; echo ready; read line; echo over >/tmp/over")
while next(call).stdout != b"ready\n":
    pass
call.cancel()
call = run("while kill -0 $(cat /tmp/pid); do busybox sleep 0.1; done 2>/dev/null; test ! -e /tmp/over")
ended = [it.ended for it in call if it.HasField("ended")]
assert [it.exit_code for it in ended] == [0], ended

spec.containers[0].env.append("NOVALUE")
try:
    sandboxes.Create(sandbox_pb2.CreateRequest(id="job-2", spec=spec), timeout=30)
    raise AssertionError("a bad request was accepted")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    details = {}
    for detail in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                details[kind] = message
    assert details[error_details_pb2.ErrorInfo].reason == "INVALID_FIELD", details
    violation = details[error_details_pb2.BadRequest].field_violations[0]
    assert violation.field == "spec.containers[0].env[0]", violation

assert sandboxes.Delete(sandbox_pb2.DeleteRequest(id="job-1"), timeout=30).existed
for change in changes:
    if change.HasField("removed"):
        assert change.removed.id == "job-1", change
        break
print("created, watched, measured and deleted")
