/**
 * The messages that a client sends.
 * Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

/** A message body under construction is just its parts; the frame is added around them. */
function frame(type: string, ...parts: readonly Buffer[]): Buffer {
  const body = parts.reduce((sum, part) => sum + part.length, 0);
  const out = Buffer.allocUnsafe(5 + body);
  out.write(type, 0, "latin1");
  out.writeInt32BE(4 + body, 1);
  let at = 5;
  for (const part of parts) {
    part.copy(out, at);
    at += part.length;
  }
  return out;
}

function zeroed(text: string): Buffer {
  return Buffer.from(`${text}\0`, "utf8");
}

export function startupMessage(parameters: ReadonlyMap<string, string>): Buffer {
  const pairs = [...parameters].flatMap(([key, value]) => [zeroed(key), zeroed(value)]);
  const body = Buffer.concat([...pairs, Buffer.from([0])]);
  const out = Buffer.allocUnsafe(8 + body.length);
  out.writeInt32BE(8 + body.length, 0);
  out.writeInt32BE(0x0003_0000, 4);
  body.copy(out, 8);
  return out;
}

export function sslRequestMessage(): Buffer {
  const out = Buffer.allocUnsafe(8);
  out.writeInt32BE(8, 0);
  out.writeInt32BE(80877103, 4);
  return out;
}

export function cancelRequestMessage(processId: number, secretKey: Buffer): Buffer {
  const out = Buffer.allocUnsafe(12 + secretKey.length);
  out.writeInt32BE(out.length, 0);
  out.writeInt32BE(80877102, 4);
  out.writeInt32BE(processId, 8);
  secretKey.copy(out, 12);
  return out;
}

export function queryMessage(sql: string): Buffer {
  return frame("Q", zeroed(sql));
}

export function passwordMessage(password: string): Buffer {
  return frame("p", zeroed(password));
}

export function saslInitialMessage(mechanism: string, response: string): Buffer {
  const bytes = Buffer.from(response, "utf8");
  const size = Buffer.allocUnsafe(4);
  size.writeInt32BE(bytes.length, 0);
  return frame("p", zeroed(mechanism), size, bytes);
}

export function saslResponseMessage(response: string): Buffer {
  return frame("p", Buffer.from(response, "utf8"));
}

export function copyDataMessage(body: Buffer): Buffer {
  return frame("d", body);
}

export function copyDoneMessage(): Buffer {
  return frame("c");
}

export function copyFailMessage(reason: string): Buffer {
  return frame("f", zeroed(reason));
}

export function terminateMessage(): Buffer {
  return frame("X");
}
