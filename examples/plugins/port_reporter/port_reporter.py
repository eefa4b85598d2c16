"""A plugin of Berth in Python: it tells the manager which declared TCP ports of sandboxes accept connections.

    python port_reporter.py --manager /run/berth/manager.sock --proto ../../../proto

It shows what every plugin does: it follows the resumable watch, holds a lease, so that of several only one reports, says by
heartbeats how it is, and tells its health. docs/plugins.md explains it step by step.
"""

import argparse
import concurrent.futures
import logging
import os
import pathlib
import socket
import sys
import tempfile
import threading
import time

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

VERSION = "1.0"
LEASE = "port-reporter"
LEASE_SECONDS = 5
BEAT_SECONDS = 2
LOOK_SECONDS = 0.5
CALL_SECONDS = 5
PROBES_AT_ONCE = 16

log = logging.getLogger("port-reporter")


def generate(proto):
    """Makes the client from the contract. A plugin that is shipped has it generated beforehand, into its package."""
    out = tempfile.mkdtemp(prefix="berth-proto-")
    files = sorted(str(it) for it in pathlib.Path(proto).rglob("*.proto"))
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    flags = [f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *flags, *files]) != 0:
        sys.exit("the contract cannot be compiled")
    sys.path.insert(0, out)


def reason(error):
    """The `ErrorReason` of a refusal; None where the manager did not answer at all."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return info.reason
    return None


class Reporter:
    def __init__(self, manager, instance):
        from berth.v1 import lease_pb2_grpc, plugin_pb2_grpc, sandbox_pb2_grpc

        # gRPC's C core sends the path of a Unix socket as authority, which HTTP/2 servers refuse: name one.
        # And it waits ever longer for a manager that is away, which is back within seconds.
        options = [
            ("grpc.default_authority", "localhost"),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self.channel = grpc.insecure_channel(f"unix:{manager}", options=options)
        self.sandboxes = sandbox_pb2_grpc.SandboxServiceStub(self.channel)
        self.leases = lease_pb2_grpc.LeaseServiceStub(self.channel)
        self.plugins = plugin_pb2_grpc.PluginServiceStub(self.channel)
        self.instance = instance
        self.started_at = time.time()
        # Not only the name: a process that was started again is not the one before.
        self.holder = f"{instance}/{int(self.started_at * 1e6):x}"
        self.lock = threading.Lock()
        self.known = {}
        self.follows = False
        self.leads = False
        self.last = None

    def follow(self):
        """Learns the sandboxes: all that stand, then each change; goes on where it broke off."""
        from berth.v1 import sandbox_pb2

        revision = 0
        while True:
            standing = {} if revision == 0 else None
            try:
                messages = self.sandboxes.Watch(sandbox_pb2.WatchRequest(from_revision=revision))
                # It is there when the stream has begun; a resumed one has nothing else to wait for.
                messages.initial_metadata()
                with self.lock:
                    self.follows = standing is None and messages.is_active()
                for message in messages:
                    with self.lock:
                        kind = message.WhichOneof("event")
                        known = self.known if standing is None else standing
                        if kind == "sandbox":
                            known[message.sandbox.id] = message.sandbox
                        elif kind == "removed":
                            known.pop(message.removed.id, None)
                        elif kind == "synced":
                            if standing is not None:
                                self.known, standing = standing, None
                            self.follows = True
                    if message.revision:
                        revision = message.revision
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.OUT_OF_RANGE:
                    # The manager does not know this revision any more: begin with all that stands.
                    revision = 0
                log.info("the watch broke off: %s", error.details())
            with self.lock:
                self.follows = False
            time.sleep(LOOK_SECONDS)

    def beat(self):
        """Says every few seconds that it is there, and how it is."""
        from berth.v1 import plugin_pb2

        while True:
            beat = plugin_pb2.HeartbeatRequest(name="port-reporter", instance=self.instance, version=VERSION)
            beat.started_at.FromNanoseconds(int(self.started_at * 1e9))
            with self.lock:
                follows, last = self.follows, self.last
            beat.state = plugin_pb2.PLUGIN_STATE_SERVING
            if not follows:
                beat.state = plugin_pb2.PLUGIN_STATE_NOT_SERVING
                beat.reason = "the sandboxes are not followed"
            if last:
                ended_at, succeeded, result = last
                beat.last_run.ended_at.FromNanoseconds(int(ended_at * 1e9))
                beat.last_run.succeeded = succeeded
                beat.last_run.result = result
            try:
                self.plugins.Heartbeat(beat, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                log.info("no heartbeat: %s", error.details())
            time.sleep(BEAT_SECONDS)

    def lead(self):
        """Takes or renews the lease; whether it is held. Its end is counted from before the question."""
        from berth.v1 import lease_pb2

        asked = lease_pb2.AcquireWorkLeaseRequest(name=LEASE, holder=self.holder)
        asked.time_to_live.FromSeconds(LEASE_SECONDS)
        try:
            self.leases.AcquireWorkLease(asked, timeout=LEASE_SECONDS / 2)
            return True
        except grpc.RpcError as error:
            if reason(error) != "WORK_LEASE_HELD":
                log.info("no lease: %s", error.details())
            return False

    def work(self):
        """Looks at all ports that are declared, again and again, and reports what changed."""
        from berth.v1 import sandbox_pb2

        reported = {}
        with concurrent.futures.ThreadPoolExecutor(PROBES_AT_ONCE) as probes:
            while True:
                if not self.lead():
                    reported.clear()
                    time.sleep(LOOK_SECONDS)
                    continue
                with self.lock:
                    known = list(self.known.values())
                ports = [port for sandbox in known for port in declared(sandbox)]
                found = list(probes.map(accepts, ports))
                failed = 0
                for (key, address, port, sandbox), bound in zip(ports, found):
                    # UNBOUND only takes back what this reporter has said.
                    if bound == reported.get(key, False):
                        continue
                    try:
                        self.report(sandbox, key[1], port, address, bound)
                        reported[key] = bound
                    except grpc.RpcError as error:
                        # A sandbox that was replaced meanwhile is another one: it is looked at anew.
                        failed += reason(error) not in ("GENERATION_CONFLICT", "CONTAINER_NOT_FOUND")
                        log.info("%s: %s", key, error.details())
                reported = {key: it for key, it in reported.items() if key in {it[0] for it in ports}}
                with self.lock:
                    self.last = (time.time(), failed == 0, f"{sum(found)} of {len(ports)} ports accept")
                time.sleep(LOOK_SECONDS)

    def report(self, sandbox, container, port, address, bound):
        from berth.v1 import sandbox_pb2

        status = sandbox_pb2.PORT_STATUS_BOUND if bound else sandbox_pb2.PORT_STATUS_UNBOUND
        request = sandbox_pb2.SetPortStatusRequest(
            container_id=f"sandbox.{sandbox.id}.{container}",
            port=port,
            status=status,
            address=address,
            source="port-reporter",
            # A report on a former sandbox of this id must not count for the next one.
            expected_generation=sandbox.generation,
            expected_restarts=sandbox.restarts,
        )
        self.sandboxes.SetPortStatus(request, timeout=CALL_SECONDS)
        log.info("%s %s:%d %s", request.container_id, address, port, "accepts" if bound else "does not accept")


def declared(sandbox):
    """The TCP ports of a sandbox that somebody could connect to, each with a key that a new sandbox of the id does not share."""
    from berth.v1 import sandbox_pb2, spec_pb2

    live = (sandbox_pb2.SANDBOX_STATUS_PENDING, sandbox_pb2.SANDBOX_STATUS_RUNNING, sandbox_pb2.SANDBOX_STATUS_NOT_READY)
    addresses = [it.address.split("/")[0] for it in sandbox.addresses]
    if sandbox.status not in live or not addresses:
        return
    for container in sandbox.spec.containers:
        for port in container.ports:
            if port.protocol in (spec_pb2.PROTOCOL_UNSPECIFIED, spec_pb2.PROTOCOL_TCP):
                key = (sandbox.id, container.name, port.port, sandbox.generation, sandbox.restarts)
                yield key, addresses[0], port.port, sandbox


def accepts(declared_port):
    _, address, port, _ = declared_port
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--manager", default="/run/berth/manager.sock", help="socket of the manager")
    arguments.add_argument("--proto", default=pathlib.Path(__file__).parents[3] / "proto", help="folder of the contract")
    arguments.add_argument("--instance", default="", help="which of several reporters this is")
    flags = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    generate(flags.proto)
    reporter = Reporter(flags.manager, flags.instance)
    for duty in (reporter.follow, reporter.beat):
        threading.Thread(target=duty, daemon=True).start()
    try:
        reporter.work()
    except KeyboardInterrupt:
        os._exit(0)


if __name__ == "__main__":
    main()
