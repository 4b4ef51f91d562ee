import { silentLogger } from "@spillway/base/log";
import { SpillwayError } from "@spillway/base/errors";
import { describe, expect, test } from "vitest";
import type { RestRequest } from "./http.ts";
import { createRestCatalog, type CatalogSource } from "./rest-catalog.ts";

const METADATA = '{"format-version":3,"current-snapshot-id":9007199254740993}';
const replaced: string[] = [];

const source: CatalogSource = {
  resolveWarehouse: async (name) => {
    if (name === "nope") throw new SpillwayError("usage", "no such warehouse");
    return { prefix: name };
  },
  namespaces: async () => ["public", "b", "a"].map((name) => ({ name, properties: { owner: "spillway" } })),
  tables: async (ns) => (ns === "public" ? ["flights", "Odd Name", "events"] : ns === "a" ? [] : null),
  load: async (ns, name) =>
    ns === "public" && name === "flights"
      ? { namespace: ns, name, metadataLocation: "file:///lake/m.json", metadataJson: METADATA }
      : null,
  replace: async (commit) => {
    replaced.push(commit.name);
    return {
      namespace: commit.namespace,
      name: commit.name,
      metadataLocation: "file:///lake/n.json",
      metadataJson: METADATA,
    };
  },
};
const catalog = createRestCatalog({ source, token: "s3cret", log: silentLogger });

async function call(method: string, url: string, body?: unknown, token: string | null = "s3cret") {
  const [path, query] = url.split("?");
  const request: RestRequest = {
    method,
    path: path ?? "",
    query: new URLSearchParams(query ?? ""),
    headers: token === null ? {} : { authorization: `Bearer ${token}` },
    body: async () => (typeof body === "string" ? body : JSON.stringify(body ?? {})),
  };
  const response = await catalog.handle(request);
  return { ...response, json: response.body === "" ? null : JSON.parse(response.body) };
}

const replaceBody = (operation: string, extra: unknown[] = []) => ({
  requirements: [],
  updates: [{ action: "add-snapshot", snapshot: { summary: { operation } } }, { action: "set-snapshot-ref" }, ...extra],
});

describe("the REST catalog", () => {
  test("asks for its token, whatever the route", async () => {
    for (const token of [null, "", "s3cre", "s3crets"]) {
      for (const path of ["/v1/config", "/v1/namespaces", "/nothing"]) {
        const response = await call("GET", path, undefined, token);
        expect(response.status).toBe(401);
        expect(response.json.error).toMatchObject({ code: 401, type: "NotAuthorizedException" });
      }
    }
  });

  test("the configuration always names its endpoints, and the prefix of the warehouse", async () => {
    const { json } = await call("GET", "/v1/config?warehouse=db%40latest");
    expect(json.endpoints).toContain("GET /v1/{prefix}/namespaces/{namespace}/tables/{table}");
    expect(json.endpoints.some((e: string) => e.startsWith("DELETE"))).toBe(false);
    expect(json.overrides).toEqual({ prefix: "db@latest" });
    expect((await call("GET", "/v1/config?warehouse=nope")).status).toBe(400);
  });

  test("lists in pages that end", async () => {
    const names: string[] = [];
    let token: string | null = "";
    for (let i = 0; token !== null && i < 10; i++) {
      const { json } = await call("GET", `/v1/namespaces/public/tables?pageSize=1&pageToken=${token}`);
      names.push(...json.identifiers.map((t: { name: string }) => t.name));
      token = json["next-page-token"];
    }
    expect(names).toEqual(["Odd Name", "events", "flights"]);
    expect((await call("GET", "/v1/namespaces?pageSize=x")).status).toBe(400);
  });

  test("a table is answered with its metadata untouched beyond 2^53", async () => {
    const response = await call("GET", "/v1/p/namespaces/public/tables/flights");
    expect(response.body).toContain('"metadata":{"format-version":3,"current-snapshot-id":9007199254740993}');
    expect(response.json["metadata-location"]).toBe("file:///lake/m.json");
  });

  test("what does not exist has the specification's error", async () => {
    expect((await call("GET", "/v1/namespaces/public/tables/none")).json.error.type).toBe("NoSuchTableException");
    expect((await call("GET", "/v1/namespaces/none/tables")).json.error.type).toBe("NoSuchNamespaceException");
    expect((await call("GET", "/v1/namespaces/a%1Fb")).status).toBe(404);
    expect((await call("GET", "/v1/namespaces/%zz")).status).toBe(400);
    const head = await call("HEAD", "/v1/namespaces/public/tables/none");
    expect([head.status, head.body]).toEqual([404, ""]);
    expect((await call("HEAD", "/v1/namespaces/public/tables/flights")).status).toBe(204);
  });

  test("every write but an allowed replace is refused with the reason", async () => {
    const refused: [string, string, unknown?][] = [
      ["POST", "/v1/namespaces"],
      ["DELETE", "/v1/namespaces/public"],
      ["POST", "/v1/namespaces/public/tables", { name: "x" }],
      ["DELETE", "/v1/namespaces/public/tables/flights?purgeRequested=true"],
      ["POST", "/v1/transactions/commit", {}],
      ["POST", "/v1/tables/rename", {}],
      ["POST", "/v1/namespaces/public/tables/flights", replaceBody("append")],
      ["POST", "/v1/namespaces/public/tables/flights", replaceBody("replace", [{ action: "remove-snapshots" }])],
    ];
    for (const [method, url, body] of refused) {
      const { status, json } = await call(method, url, body);
      expect([url, status]).toEqual([url, 403]);
      expect(json.error.message).toContain("only writer");
    }
    expect(replaced).toEqual([]);
    expect((await call("POST", "/v1/namespaces/public/tables/flights", replaceBody("replace"))).status).toBe(200);
    expect(replaced).toEqual(["flights"]);
  });

  test("bad bodies are the client's error", async () => {
    for (const body of ["{", "[]", "null", '{"requirements":1,"updates":[]}', '{"requirements":[],"updates":[null]}']) {
      expect((await call("POST", "/v1/namespaces/public/tables/flights", body)).status).toBe(400);
    }
    expect((await call("POST", "/v1/namespaces/public/tables/flights/metrics", { x: 1 })).status).toBe(204);
  });
});
