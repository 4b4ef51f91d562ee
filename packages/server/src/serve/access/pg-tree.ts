/**
 * Statements in Postgres's grammar against the allowlist: what writes, defines and copies. A node or field that is not named here
 * is refused. What comes out is what the statement does to which tables; whether the user may is the gate's question.
 * Source: the parse nodes of PostgreSQL (src/include/nodes/parsenodes.h) as libpg-query prints them.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Privilege } from "../../control/control.ts";
import { type At, functionRefused, settingRefused, statementRefused, typeRefused } from "./denials.ts";
import { FUNCTIONS, MAX_SIZE, SETTABLE, SHOWABLE, SIZED, TABLE_FUNCTIONS, TYPES } from "./functions.ts";

export type PgNode = Readonly<Record<string, unknown>>;

export interface PgUse {
  readonly catalog: string;
  readonly schema: string;
  readonly name: string;
  readonly privilege: Privilege;
  /** What it does cannot be held to a policy: it needs a table without one. `rename`: without one for anybody. */
  readonly whole: "no" | "rows" | "table" | "rename";
  readonly position?: number;
}

export interface CheckedStatement {
  readonly uses: readonly PgUse[];
  /** Schemas in which something is made: `ddl` on all of it is needed. */
  readonly schemas: readonly string[];
}

const EXPRESSIONS = new Set([
  "A_Const", "ColumnRef", "A_Star", "ParamRef", "A_Expr", "BoolExpr", "NullTest", "BooleanTest", "FuncCall", "TypeCast", "TypeName",
  "A_ArrayExpr", "A_Indirection", "A_Indices", "CaseExpr", "CaseWhen", "CoalesceExpr", "MinMaxExpr", "SubLink", "RowExpr",
  "SetToDefault", "SQLValueFunction", "CollateClause", "GroupingFunc", "GroupingSet", "WindowDef", "SortBy", "ResTarget", "RangeVar",
  "RangeSubselect", "RangeFunction", "RangeTableSample", "JoinExpr", "Alias", "WithClause", "CommonTableExpr", "SelectStmt",
  "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "MergeWhenClause", "OnConflictClause", "InferClause", "IndexElem",
  "String", "Integer", "Float", "Boolean", "BitString", "List", "MultiAssignRef", "NamedArgExpr", "ReturningClause",
  "ReturningOption", "LockingClause", "ColumnDef", "Constraint", "DefElem", "AlterTableCmd", "IntoClause",
]); // prettier-ignore
/** Fields whose value is a node without its name around it. */
const BARE: Readonly<Record<string, string>> = {
  relation: "RangeVar",
  typeName: "TypeName",
  withClause: "WithClause",
  onConflictClause: "OnConflictClause",
  alias: "Alias",
  join_using_alias: "Alias",
  over: "WindowDef",
  infer: "InferClause",
  larg: "SelectStmt",
  rarg: "SelectStmt",
  returningClause: "ReturningClause",
  collClause: "CollateClause",
  ival: "Integer",
  sval: "String",
  fval: "Float",
  boolval: "Boolean",
  bsval: "BitString",
};
const DML = new Set(["InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"]);
const ALTERATIONS = new Set([
  "AT_AddColumn", "AT_DropColumn", "AT_ColumnDefault", "AT_DropNotNull", "AT_SetNotNull", "AT_AlterColumnType",
  "AT_AddConstraint", "AT_DropConstraint", "AT_SetStatistics",
]); // prettier-ignore
const MAX_DEPTH = 500;

/** Throws `access_statement_refused`, `access_function_refused`, `access_setting_refused`. */
export function checkStatement(tree: PgNode): CheckedStatement {
  const checker = new Checker();
  checker.statement(tree);
  return { uses: checker.uses, schemas: checker.schemas };
}

class Checker {
  readonly uses: PgUse[] = [];
  readonly schemas: string[] = [];

  statement(tree: PgNode): void {
    const [type = "", body] = single(tree);
    switch (type) {
      case "SelectStmt":
      case "InsertStmt":
      case "UpdateStmt":
      case "DeleteStmt":
      case "MergeStmt":
        this.node(type, body, new Set(), 0);
        return;
      case "ExplainStmt":
        for (const option of list(body["options"]))
          this.#option(option, ["analyze", "verbose", "costs", "format", "buffers"]);
        this.statement(record(body["query"]));
        return;
      case "TransactionStmt":
        if (/PREPARE|PREPARED/.test(string(body["kind"]))) throw statementRefused("a prepared transaction");
        return;
      case "VariableSetStmt":
        if (!/^VAR_RESET_ALL$/.test(string(body["kind"]))) requireSettable(string(body["name"]), SETTABLE);
        return;
      case "VariableShowStmt":
        requireSettable(string(body["name"]), SHOWABLE);
        return;
      // USE of DuckDB, as the classification has it.
      case "Use":
      case "DiscardStmt":
      case "ClosePortalStmt":
      case "FetchStmt":
      case "DeallocateStmt":
        return;
      case "DeclareCursorStmt":
        this.statement(record(body["query"]));
        return;
      case "CopyStmt":
        this.#copy(body);
        return;
      case "TruncateStmt":
        for (const relation of list(body["relations"])) this.#use(record(relation["RangeVar"]), "delete", "rows");
        return;
      case "CreateStmt":
      case "CreateTableAsStmt":
      case "CreateSchemaStmt":
      case "AlterTableStmt":
      case "RenameStmt":
      case "DropStmt":
      case "IndexStmt":
        this.#definition(type, body);
        return;
      default:
        throw statementRefused(name(type));
    }
  }

  node(type: string, body: PgNode, scope: ReadonlySet<string>, depth: number): void {
    if (depth > MAX_DEPTH) throw new SpillwayError("limit_exceeded", "the statement is nested too deeply");
    if (!EXPRESSIONS.has(type)) throw statementRefused(name(type), at(body));
    const inner = this.#withs(body["withClause"], scope, depth);
    switch (type) {
      case "RangeVar":
        if (!(string(body["schemaname"]) === "" && scope.has(string(body["relname"])))) this.#use(body, "select", "no");
        return;
      case "FuncCall":
        this.#call(body, FUNCTIONS);
        break;
      case "RangeFunction":
        return this.#rangeFunction(body, inner, depth);
      case "TypeName":
        this.#type(body);
        break;
      case "A_Expr": {
        const names = list(body["name"]).map((n) => string(record(n["String"])["sval"]));
        // Others may have made operators of their own, in other schemas.
        if (names.length > 1 && names[0] !== "pg_catalog") throw functionRefused(names.join("."), at(body));
        break;
      }
      case "LockingClause":
        return;
      case "SelectStmt":
        if (body["intoClause"] !== undefined) throw statementRefused("SELECT INTO");
        break;
      case "InsertStmt":
      case "UpdateStmt":
      case "DeleteStmt":
      case "MergeStmt":
        this.#change(type, body, inner);
        break;
      default:
    }
    for (const [key, value] of Object.entries(body)) {
      if (key === "withClause" || (DML.has(type) && key === "relation")) continue;
      this.#field(key, value, inner, depth);
    }
  }

  #field(key: string, value: unknown, scope: ReadonlySet<string>, depth: number): void {
    if (Array.isArray(value)) {
      for (const item of value) {
        if (typeof item !== "object" || item === null) continue;
        // A place that may be empty, as in a row of DEFAULTs, is an object without a key.
        if (Object.keys(item as object).length === 0) continue;
        const [type = "", body] = single(item as PgNode);
        this.node(type, body, scope, depth + 1);
      }
      return;
    }
    if (typeof value !== "object" || value === null) return;
    const [first, second] = Object.keys(value);
    // Names of nodes begin with a capital, those of fields do not.
    const isNamed = first !== undefined && second === undefined && /^[A-Z]/.test(first);
    const bare = BARE[key];
    if (bare !== undefined && !isNamed) return this.node(bare, value as PgNode, scope, depth + 1);
    if (first === undefined) return;
    const [type = "", body] = single(value as PgNode);
    this.node(type, body, scope, depth + 1);
  }

  #withs(clause: unknown, scope: ReadonlySet<string>, depth: number): ReadonlySet<string> {
    if (typeof clause !== "object" || clause === null) return scope;
    const with_ = clause as PgNode;
    const entries = list(with_["ctes"]).map((c) => record(c["CommonTableExpr"]));
    const all = new Set([...scope, ...entries.map((e) => string(e["ctename"]))]);
    let seen = scope;
    for (const entry of entries) {
      if (entry["search_clause"] !== undefined || entry["cycle_clause"] !== undefined) {
        throw statementRefused("SEARCH and CYCLE");
      }
      this.#field("ctequery", entry["ctequery"], with_["recursive"] === true ? all : seen, depth);
      seen = new Set([...seen, string(entry["ctename"])]);
    }
    return all;
  }

  #change(type: string, body: PgNode, scope: ReadonlySet<string>): void {
    const target = record(body["relation"]);
    if (string(target["schemaname"]) === "" && scope.has(string(target["relname"]))) {
      throw statementRefused("a change of a common table expression", at(target));
    }
    const reads = body["returningClause"] !== undefined || body["returningList"] !== undefined;
    if (type === "InsertStmt") {
      this.#use(target, "insert", "no");
      const conflict = record(body["onConflictClause"]);
      if (string(conflict["action"]) === "ONCONFLICT_UPDATE") this.#use(target, "update", "no");
      if (reads || string(conflict["action"]) !== "") this.#use(target, "select", "no");
    } else if (type === "UpdateStmt" || type === "DeleteStmt") {
      this.#use(target, type === "UpdateStmt" ? "update" : "delete", "no");
      const looks = reads || ["whereClause", "fromClause", "usingClause"].some((key) => body[key] !== undefined);
      if (looks || holdsColumn(body["targetList"])) this.#use(target, "select", "no");
    } else {
      this.#use(target, "select", "no");
      for (const clause of list(body["mergeWhenClauses"])) {
        const command = string(record(clause["MergeWhenClause"])["commandType"]);
        const privilege = ({ CMD_INSERT: "insert", CMD_UPDATE: "update", CMD_DELETE: "delete" } as const)[
          command as "CMD_INSERT"
        ];
        if (privilege) this.#use(target, privilege, "no");
      }
    }
  }

  #copy(body: PgNode): void {
    if (string(body["filename"]) !== "" || body["is_program"] === true) {
      throw statementRefused("COPY with a file or program of the server");
    }
    for (const option of list(body["options"])) {
      this.#option(option, [
        "format", "delimiter", "null", "header", "quote", "escape", "force_quote", "force_not_null", "force_null", "encoding", "default",
      ]); // prettier-ignore
    }
    if (body["query"] !== undefined) return this.statement(record(body["query"]));
    if (body["whereClause"] !== undefined) this.#field("whereClause", body["whereClause"], new Set(), 0);
    const from = body["is_from"] === true;
    this.#use(record(body["relation"]), from ? "insert" : "select", "no");
  }

  #option(option: PgNode, known: readonly string[]): void {
    const def = string(record(option["DefElem"])["defname"]).toLowerCase();
    if (!known.includes(def)) throw statementRefused(`the option ${def.toUpperCase()}`);
  }

  #definition(type: string, body: PgNode): void {
    switch (type) {
      case "CreateSchemaStmt":
        if (body["authrole"] !== undefined || body["schemaElts"] !== undefined)
          throw statementRefused("this CREATE SCHEMA");
        this.schemas.push(string(body["schemaname"]));
        return;
      case "CreateStmt": {
        for (const key of ["inhRelations", "ofTypename", "tablespacename", "accessMethod"]) {
          if (body[key] !== undefined)
            throw statementRefused("a table that depends on another, a type or a tablespace");
        }
        this.#use(record(body["relation"]), "ddl", "no");
        this.#field("tableElts", body["tableElts"], new Set(), 0);
        return;
      }
      case "CreateTableAsStmt": {
        if (string(body["objtype"]) !== "OBJECT_TABLE") throw statementRefused("CREATE MATERIALIZED VIEW");
        this.#use(record(record(body["into"])["rel"]), "ddl", "no");
        return this.statement(record(body["query"]));
      }
      case "AlterTableStmt": {
        if (string(body["objtype"]) !== "OBJECT_TABLE") throw statementRefused("ALTER of anything but a table");
        this.#use(record(body["relation"]), "ddl", "table");
        for (const item of list(body["cmds"])) {
          const command = record(item["AlterTableCmd"]);
          if (!ALTERATIONS.has(string(command["subtype"])))
            throw statementRefused(`ALTER TABLE ${string(command["subtype"])}`);
          if (command["def"] !== undefined) this.#field("def", command["def"], new Set(), 0);
        }
        return;
      }
      case "RenameStmt": {
        const kind = string(body["renameType"]);
        if (kind !== "OBJECT_TABLE" && kind !== "OBJECT_COLUMN")
          throw statementRefused("RENAME of anything but a table or column");
        this.#use(record(body["relation"]), "ddl", "rename");
        return;
      }
      case "DropStmt": {
        const kind = string(body["removeType"]);
        for (const object of list(body["objects"])) {
          const names = list(record(object["List"])["items"]).map((item) => string(record(item["String"])["sval"]));
          if (kind === "OBJECT_TABLE") {
            const [relname = "", schemaname = "", catalogname = ""] = names.toReversed();
            this.#use({ relname, schemaname, catalogname }, "ddl", "rename");
          } else if (kind === "OBJECT_SCHEMA" && string(body["behavior"]) !== "DROP_CASCADE") {
            this.schemas.push(string(record(object["String"])["sval"]));
          } else throw statementRefused("DROP of anything but a table or an empty schema");
        }
        return;
      }
      default: {
        this.#use(record(body["relation"]), "ddl", "table");
        if (body["tableSpace"] !== undefined) throw statementRefused("an index with a tablespace");
        this.#field("indexParams", body["indexParams"], new Set(), 0);
        this.#field("whereClause", body["whereClause"], new Set(), 0);
      }
    }
  }

  #call(body: PgNode, allowed: ReadonlySet<string>): void {
    const names = list(body["funcname"]).map((n) => string(record(n["String"])["sval"]));
    const [last = "", schema = "pg_catalog"] = names.toReversed();
    const key = last.toLowerCase();
    if (names.length > 2 || schema !== "pg_catalog" || !allowed.has(key))
      throw functionRefused(names.join("."), at(body));
    const sized = SIZED.get(key);
    if (sized !== undefined) {
      const size = record(record(record(list(body["args"])[sized])["A_Const"])["ival"])["ival"];
      if (typeof size !== "number" || size > MAX_SIZE) {
        throw functionRefused(`${key} with a size that is no constant up to ${MAX_SIZE}`, at(body));
      }
    }
  }

  #rangeFunction(body: PgNode, scope: ReadonlySet<string>, depth: number): void {
    if (body["coldeflist"] !== undefined) throw statementRefused("a function with a list of columns");
    for (const item of list(body["functions"])) {
      const [call] = list(record(item["List"])["items"]);
      const func = record(call?.["FuncCall"]);
      if (call === undefined || call["FuncCall"] === undefined) throw functionRefused("in FROM");
      this.#call(func, TABLE_FUNCTIONS);
      this.#field("args", func["args"], scope, depth);
    }
  }

  #type(body: PgNode): void {
    const names = list(body["names"]).map((n) => string(record(n["String"])["sval"]));
    const [last = "", schema = "pg_catalog"] = names.toReversed();
    if (body["typeOid"] !== undefined || body["pct_type"] === true || names.length > 2)
      throw typeRefused(names.join("."), at(body));
    // Without arguments or names: as in an interval's fields.
    if (names.length === 0) return;
    const extra =
      ["interval", "timestamp", "serial", "bigserial", "smallserial", "xml"].includes(last) && last !== "xml";
    if (schema !== "pg_catalog" || !(TYPES.has(last.toLowerCase()) || extra))
      throw typeRefused(names.join("."), at(body));
  }

  #use(relation: PgNode, privilege: Privilege, whole: PgUse["whole"]): void {
    this.uses.push({
      catalog: string(relation["catalogname"]),
      schema: string(relation["schemaname"]),
      name: string(relation["relname"]),
      privilege,
      whole,
      ...at(relation),
    });
  }
}

/** The setting of a SET, SHOW or RESET. `SET SESSION CHARACTERISTICS` and the like come under their names in lower case. */
function requireSettable(setting: string, known: ReadonlySet<string>): void {
  const key = setting.toLowerCase();
  const special = ["transaction", "session characteristics", ""].includes(key);
  if (!special && !known.has(key)) throw settingRefused(setting);
}

function holdsColumn(value: unknown): boolean {
  if (Array.isArray(value)) return value.some(holdsColumn);
  if (typeof value !== "object" || value === null) return false;
  return Object.entries(value).some(([key, part]) => key === "ColumnRef" || holdsColumn(part));
}

function single(node: PgNode): [string, PgNode] {
  const [entry] = Object.entries(node);
  const isNamed = entry !== undefined && Object.keys(node).length === 1 && /^[A-Z]/.test(entry[0]);
  if (!isNamed) throw statementRefused("a statement with a part that is not known");
  return [entry[0], record(entry[1])];
}

/** `CreateFunctionStmt` → `CREATE FUNCTION`. */
function name(type: string): string {
  const plain = type.replace(/Stmt$/, "").replace(/([a-z])([A-Z])/g, "$1 $2");
  return plain === "" ? "this statement" : plain.toUpperCase();
}

/** libpg-query counts bytes; for texts of ASCII that is the character. */
function at(node: PgNode): At {
  const location = node["location"];
  return typeof location === "number" && location >= 0 ? { position: location + 1 } : {};
}

function record(value: unknown): PgNode {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as PgNode) : {};
}

function list(value: unknown): PgNode[] {
  return Array.isArray(value) ? value.filter((v): v is PgNode => typeof v === "object" && v !== null) : [];
}

function string(value: unknown): string {
  return typeof value === "string" ? value : "";
}
