import { expect, test } from "vitest";
import { md5Password, saslPrep, scramClient } from "./scram.ts";

// RFC 7677 §3, but for the user name, which Postgres takes from the start-up message.
const NONCE = "rOprNGfwEbeRWgbNEkqO";
const FIRST = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

test("SCRAM-SHA-256 proves the password and checks the server's proof", async () => {
  const client = scramClient("pencil", NONCE);
  expect(client.first).toBe(`n,,n=,r=${NONCE}`);
  const final = await client.final(FIRST);
  // Made with an implementation of its own from RFC 5802 §3, with an empty user name.
  const { createHash, createHmac, pbkdf2Sync } = await import("node:crypto");
  const hmac = (key: Buffer, text: string): Buffer => createHmac("sha256", key).update(text).digest();
  const salted = pbkdf2Sync("pencil", Buffer.from("W22ZaJ0SNY7soEsUEjb6gQ==", "base64"), 4096, 32, "sha256");
  const auth = `n=,r=${NONCE},${FIRST},${final.slice(0, final.indexOf(",p="))}`;
  const proof = Buffer.from(final.slice(final.indexOf(",p=") + 3), "base64");
  const signature = hmac(createHash("sha256").update(hmac(salted, "Client Key")).digest(), auth);
  expect(Buffer.from(proof.map((byte, i) => byte ^ (signature[i] ?? 0)))).toEqual(hmac(salted, "Client Key"));
  const server = hmac(hmac(salted, "Server Key"), auth).toString("base64");
  expect(() => client.verify(`v=${server}`)).not.toThrow();
  expect(() => client.verify(`v=${Buffer.alloc(32).toString("base64")}`)).toThrow(/could not prove/);
  expect(() => client.verify("e=invalid-proof")).toThrow(/invalid-proof/);
});

test.each([
  ["a nonce that is not an extension of ours", "r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"],
  ["our own nonce again", `r=${NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`],
  ["no salt", `r=${NONCE}x,s=,i=4096`],
  ["hours of hashing", `r=${NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=2000000000`],
])("%s is refused", async (_, first) => {
  await expect(scramClient("pencil", NONCE).final(first)).rejects.toThrow(/malformed/);
});

test("passwords are normalized as Postgres does", () => {
  expect(saslPrep("plain ASCII ~")).toBe("plain ASCII ~");
  expect(saslPrep("I\u00adX")).toBe("IX");
  expect(saslPrep("\u2168")).toBe("IX");
  expect(saslPrep("a\u00a0b\u3000c")).toBe("a b c");
  expect(saslPrep("bell\u0007é")).toBe("bell\u0007é");
});

test("MD5 with salt", () => {
  expect(md5Password("user", "secret", Buffer.from([1, 2, 3, 4]))).toMatch(/^md5[0-9a-f]{32}$/);
});
