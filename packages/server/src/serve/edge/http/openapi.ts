/** The description of the control plane's requests, from the same tables as their handling. OpenAPI 3.1.0. */
import { type Field, type Resource, RESOURCES } from "../../../control/control.ts";

type Json = Readonly<Record<string, unknown>>;

export function openApi(version: string): Json {
  const paths: Record<string, Json> = { ...FIXED_PATHS };
  const schemas: Record<string, Json> = { Error: ERROR };
  for (const resource of RESOURCES) {
    const name = pascal(resource.singular);
    schemas[name] = schemaOf(resource, "shown");
    paths[`/v1/${resource.name}`] = collection(resource, name);
    paths[`/v1/${resource.name}/{id}`] = item(resource, name);
    if (!isReadOnly(resource)) {
      schemas[`New${name}`] = schemaOf(resource, "new");
      schemas[`${name}Patch`] = schemaOf(resource, "patch");
    }
  }
  return {
    openapi: "3.1.0",
    info: { title: "Spillway control plane", version },
    security: [{ session: [] }, { apiKey: [] }],
    paths,
    components: {
      schemas,
      securitySchemes: {
        session: { type: "http", scheme: "bearer", description: "The token of POST /v1/login, or an access token." },
        apiKey: { type: "apiKey", in: "header", name: "X-API-Key" },
      },
    },
  };
}

export function isReadOnly(resource: Resource): boolean {
  return resource.name === "sessions" || resource.name === "nodes";
}

function schemaOf(resource: Resource, form: "shown" | "new" | "patch"): Json {
  const fields = Object.entries(resource.fields).filter(([, field]) => isIn(field, form));
  const properties = Object.fromEntries(fields.map(([name, field]) => [name, property(field)]));
  if (form === "shown") Object.assign(properties, { id: { type: "string", format: "uuid" } });
  const required = fields.filter(([, f]) => (form === "new" ? f.required === true : form === "shown")).map(([n]) => n);
  return {
    type: "object",
    description: resource.help,
    properties,
    ...(required.length > 0 ? { required: form === "shown" ? ["id", ...required] : required } : {}),
    additionalProperties: false,
  };
}

function isIn(field: Field, form: "shown" | "new" | "patch"): boolean {
  if (form === "shown") return field.access !== "write";
  return field.access !== "read" && (form === "new" || field.access !== "create");
}

function property(field: Field): Json {
  const base: Record<FieldKind, Json> = {
    text: { type: "string" },
    int: { type: "integer" },
    number: { type: "number" },
    bool: { type: "boolean" },
    enum: { type: "string", enum: field.values },
    texts: { type: "array", items: { type: "string", enum: field.values } },
    ref: { type: "string", description: `The path of a ${field.ref ?? ""}.` },
    time: { type: "string", format: "date-time" },
  };
  const made = base[field.type];
  return {
    ...made,
    ...(field.nullable ? { type: [made["type"], "null"] } : {}),
    ...(field.nullable && field.type === "enum" ? { enum: [...(field.values ?? []), null] } : {}),
    ...(field.min === undefined ? {} : { minimum: field.min }),
    ...(field.max === undefined ? {} : { maximum: field.max }),
    ...(field.access === "write" ? { writeOnly: true } : field.access === "read" ? { readOnly: true } : {}),
    description: field.help,
  };
}
type FieldKind = Field["type"];

function collection(resource: Resource, name: string): Json {
  const filters = Object.entries(resource.fields)
    .filter(([, f]) => f.access !== "write")
    .map(([field, f]) => ({ name: field, in: "query", description: f.help, schema: { type: "string" } }));
  const list = schema({
    type: "object",
    properties: { items: { type: "array", items: ref(name) } },
    required: ["items"],
  });
  return {
    get: {
      operationId: `list${pascal(resource.name)}`,
      summary: resource.help,
      parameters: filters,
      responses: ok(list),
    },
    ...(isReadOnly(resource)
      ? {}
      : {
          post: {
            operationId: `create${name}`,
            summary: `Makes a ${resource.singular}.`,
            requestBody: { required: true, ...schema(ref(`New${name}`)) },
            responses: { "201": { description: "made", ...schema(ref(name)) }, ...ERRORS },
          },
        }),
  };
}

function item(resource: Resource, name: string): Json {
  const what = resource.path ? "The id or the path." : "The id.";
  const parameters = [{ name: "id", in: "path", required: true, description: what, schema: { type: "string" } }];
  const patch = {
    operationId: `update${name}`,
    summary: `Changes a ${resource.singular}.`,
    parameters,
    requestBody: { required: true, ...schema(ref(`${name}Patch`)) },
    responses: ok(schema(ref(name))),
  };
  const remove = {
    operationId: `delete${name}`,
    summary: resource.name === "sessions" ? "Ends a session." : `Deletes a ${resource.singular}.`,
    parameters,
    responses: { "204": { description: "done" }, ...ERRORS },
  };
  return {
    get: { operationId: `get${name}`, summary: resource.help, parameters, responses: ok(schema(ref(name))) },
    ...(isReadOnly(resource) ? {} : { patch }),
    ...(resource.name === "nodes" ? {} : { delete: remove }),
  };
}

const ref = (name: string): Json => ({ $ref: `#/components/schemas/${name}` });
const schema = (of: Json): Json => ({ content: { "application/json": { schema: of } } });
const ERROR: Json = {
  type: "object",
  properties: {
    error: {
      type: "object",
      properties: {
        code: { type: "string" },
        kind: { type: "string" },
        message: { type: "string" },
        remedy: { type: "string" },
        details: { type: "object" },
      },
      required: ["code", "kind", "message", "remedy"],
    },
  },
  required: ["error"],
};
const failure = (description: string): Json => ({ description, ...schema(ref("Error")) });
const ERRORS: Json = {
  "400": failure("not understood"),
  "401": failure("not logged in"),
  "403": failure("not allowed"),
  "404": failure("not there"),
  "409": failure("in conflict"),
  "503": failure("try again"),
};
const ok = (body: Json): Json => ({ "200": { description: "done", ...body }, ...ERRORS });
const text = { type: "string" };
const manifest = schema({ type: "object", description: "A manifest, as `spillway export` prints it." });
const flag = (name: string, description: string): Json => ({
  name,
  in: "query",
  description,
  schema: { type: "boolean" },
});
const changes = schema({
  type: "object",
  properties: { changes: { type: "array", items: { type: "object" } } },
  required: ["changes"],
});

const FIXED_PATHS: Readonly<Record<string, Json>> = {
  "/health": {
    get: {
      operationId: "health",
      summary: "The process and its listeners answer.",
      security: [],
      responses: ok(schema({ type: "object" })),
    },
  },
  "/ready": {
    get: {
      operationId: "ready",
      summary: "Statements can be run; else 503 with the part that is not ready.",
      security: [],
      responses: ok(schema({ type: "object" })),
    },
  },
  "/openapi.json": {
    get: {
      operationId: "openapi",
      summary: "This description.",
      security: [],
      responses: ok(schema({ type: "object" })),
    },
  },
  "/v1/login": {
    post: {
      operationId: "login",
      summary: "A session token for a name and password.",
      security: [],
      requestBody: {
        required: true,
        ...schema({ type: "object", properties: { user: text, password: text }, required: ["user", "password"] }),
      },
      responses: ok(schema({ type: "object", properties: { token: text }, required: ["token"] })),
    },
  },
  "/v1/logout": {
    post: {
      operationId: "logout",
      summary: "Ends the session of the token.",
      responses: { "204": { description: "done" }, ...ERRORS },
    },
  },
  "/v1/me": { get: { operationId: "me", summary: "Who the caller is.", responses: ok(schema({ type: "object" })) } },
  "/v1/manifest": {
    get: { operationId: "exportManifest", summary: "The whole control plane.", responses: ok(manifest) },
    post: {
      operationId: "applyManifest",
      summary: "Brings the control plane to what the manifest says.",
      parameters: [flag("dryRun", "Only say what would be done."), flag("prune", "Delete what is not listed.")],
      requestBody: { required: true, ...manifest },
      responses: ok(changes),
    },
  },
  "/v1/audit": {
    get: {
      operationId: "audit",
      summary: "The latest records of the audit.",
      parameters: ["user", "action", "before", "limit"].map((name) => ({ name, in: "query", schema: text })),
      responses: ok(
        schema({
          type: "object",
          properties: { items: { type: "array", items: { type: "object" } } },
          required: ["items"],
        }),
      ),
    },
  },
};

function pascal(name: string): string {
  return name.replace(/(^|-)(.)/g, (_, __, c: string) => c.toUpperCase());
}
