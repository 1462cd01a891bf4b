// An adapter to start from: put your system's API where `Contacts` is, and keep the rest.
//
// node dist/adapter.js HOST:PORT DESCRIPTORS; the second is contract/descriptors.binpb of the package deskwire-protos.
// MY_PASSWORD is what Auth must bring, MY_FILE where contacts are kept.

import { appendFileSync, closeSync, existsSync, fsyncSync, openSync, readFileSync } from "node:fs";
import { randomBytes, timingSafeEqual } from "node:crypto";
import * as grpc from "@grpc/grpc-js";
import { loadFileDescriptorSetFromBuffer } from "@grpc/proto-loader";

// Of deskwire.events.v1.PushOutcome.
const DELIVERED = 1, DUPLICATE = 2, SKIPPED = 3, RETRY = 4, AUTH_EXPIRED = 5;
const TYPES = ["customer_created", "customer_updated"];
const [listen = "127.0.0.1:7500", descriptors = "descriptors.binpb"] = process.argv.slice(2);

interface PushItem {
  event: { event_id: string; event_type: string; subject: string; sequence: string };
  json: string;
}
interface PushResult {
  event_id: string;
  outcome: number;
  detail?: string;
}
type Call<T> = grpc.ServerUnaryCall<T, unknown>;
type Done = grpc.sendUnaryData<unknown>;

/** The system: a file of events. What is in it is on the disk, and is known by its id. */
class Contacts {
  private known = new Set<string>();
  private file: number;

  constructor(path: string) {
    if (existsSync(path)) {
      for (const line of readFileSync(path, "utf8").split("\n").filter(Boolean)) {
        try {
          this.known.add(JSON.parse(line).event_id);
        } catch {
          // A line that a crash cut off: its event was never answered, and comes again.
        }
      }
    }
    this.file = openSync(path, "a");
    appendFileSync(this.file, "\n");
  }

  write(id: string, json: string): boolean {
    if (this.known.has(id)) return false;
    appendFileSync(this.file, json + "\n");
    fsyncSync(this.file);
    this.known.add(id);
    return true;
  }

  close(): void {
    closeSync(this.file);
  }
}

const contacts = new Contacts(process.env["MY_FILE"] ?? "contacts.jsonl");
const password = process.env["MY_PASSWORD"] ?? "";
const sessions = new Set<string>();

function right(given: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(password)];
  return password !== "" && a.length === b.length && timingSafeEqual(a, b);
}

function take(item: PushItem): { outcome: number; detail?: string } {
  if (!TYPES.includes(item.event.event_type)) return { outcome: SKIPPED };
  try {
    return { outcome: contacts.write(item.event.event_id, item.json) ? DELIVERED : DUPLICATE };
  } catch (error) {
    return { outcome: RETRY, detail: String(error) };
  }
}

const service: grpc.UntypedServiceImplementation = {
  Schema(_call: Call<unknown>, done: Done) {
    done(null, { adapter: "my-adapter/0.1.0", event_types: TYPES, max_batch: 50, idempotent: true });
  },

  // From a descriptor set, proto-loader reads a map as its entries.
  Auth(call: Call<{ credentials: { key: string; value: string }[] }>, done: Done) {
    const given = call.request.credentials.find((each) => each.key === "password")?.value ?? "";
    if (!right(given)) {
      done({ code: grpc.status.UNAUTHENTICATED, details: "the password is wrong" });
      return;
    }
    const session = randomBytes(24).toString("base64url");
    sessions.add(session);
    done(null, { session });
  },

  // One result for each event, in the same order, under its event_id. The same event may come again.
  Push(call: Call<{ session: string; items: PushItem[] }>, done: Done) {
    const known = sessions.has(call.request.session);
    const results: PushResult[] = call.request.items.map((item) => ({
      event_id: item.event.event_id,
      ...(known ? take(item) : { outcome: AUTH_EXPIRED }),
    }));
    done(null, { results });
  },

  Check(call: Call<{ session: string }>, done: Done) {
    if (sessions.has(call.request.session)) done(null, { healthy: true });
    else done({ code: grpc.status.UNAUTHENTICATED, details: "sign in first" });
  },
};

const contract = loadFileDescriptorSetFromBuffer(readFileSync(descriptors), {
  keepCase: true,
  longs: String,
  defaults: true,
});
const definition = contract["deskwire.adapters.v1.SystemAdapterService"];
const server = new grpc.Server({ "grpc.so_reuseport": 0, "grpc.max_receive_message_length": 4 << 20 });
server.addService(definition as grpc.ServiceDefinition, service);
// Plaintext: keep it on loopback, or give it grpc.ServerCredentials.createSsl.
server.bindAsync(listen, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.error(`serving on port ${port}`);
});
process.on("SIGTERM", () => {
  server.tryShutdown(() => contacts.close());
});
