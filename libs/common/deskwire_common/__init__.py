"""The library that every deskwire service shares; it knows nothing of the business."""

import os

# gRPC's core would write to stderr, among the lines of JSON, one for each compressed request that it refuses. It reads
# this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
