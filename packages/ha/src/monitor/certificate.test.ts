import { X509Certificate } from "node:crypto";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { expect, test } from "vitest";
import { HttpClient } from "../keeper/http-client.ts";
import { selfSigned } from "./certificate.ts";

test("the certificate is valid, self-signed, names its hosts and is pinned by its fingerprint", async () => {
  const { cert, key, fingerprint } = selfSigned(["127.0.0.1", "monitor.example"], Date.now());
  const parsed = new X509Certificate(cert);
  expect(parsed.verify(parsed.publicKey)).toBe(true);
  expect(parsed.checkIP("127.0.0.1")).toBe("127.0.0.1");
  expect(parsed.checkHost("monitor.example")).toBe("monitor.example");
  expect(parsed.fingerprint256.replaceAll(":", "").toLowerCase()).toBe(fingerprint);
  expect(new Date(parsed.validFrom).getTime()).toBeLessThan(Date.now());
  const server = createServer({ cert, key }, (_, response) => void response.end("ok"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const client = new HttpClient();
  const call = (pin: string): Promise<{ status: number; body: string }> =>
    client.call({ method: "GET", url: `https://127.0.0.1:${port}/`, token: "t", timeoutMs: 3000, fingerprint: pin });
  expect((await call(fingerprint)).body).toBe("ok");
  await expect(call("00".repeat(32))).rejects.toMatchObject({ code: "ha_unreachable" });
  client.close();
  server.closeAllConnections();
  server.close();
});
