/**
 * What Postgres calls the columns of a query that gives them no names, so that `rows[0].count` is there whoever ran it.
 * Source: `FigureColname`, src/backend/parser/parse_target.c.
 */
import { type SqlNode, stringsOf } from "./sql-tree.ts";

/** The names in order; null when they depend on a table's columns (`*`). */
export function columnNames(type: string, body: SqlNode): (string | null)[] | null {
  const list = type === "SelectStmt" ? targetsOf(body) : null;
  if (list === null) return null;
  const targets = list.map((item) => (item as SqlNode)["ResTarget"] as SqlNode | undefined);
  if (targets.some((target) => target === undefined || isStar(target["val"]))) return null;
  return targets.map((target) => {
    const given = target?.["name"];
    return typeof given === "string" ? given : nameOf(target?.["val"]).name;
  });
}

/** Of a set operation the leftmost query names the columns. */
function targetsOf(select: SqlNode): unknown[] | null {
  const left = select["larg"] as SqlNode | undefined;
  if (left) return targetsOf(left);
  const list = select["targetList"];
  return Array.isArray(list) ? list : null;
}

function isStar(node: unknown): boolean {
  const fields = ((node as SqlNode | undefined)?.["ColumnRef"] as SqlNode | undefined)?.["fields"];
  return Array.isArray(fields) && fields.some((field) => "A_Star" in (field as SqlNode));
}

/** How sure a name is: a cast takes its argument's only when that is more than a guess. */
interface Named {
  readonly name: string;
  readonly strength: 0 | 1 | 2;
}

const NONE: Named = { name: "?column?", strength: 0 };

const FIXED: Readonly<Record<string, string>> = {
  CoalesceExpr: "coalesce",
  A_ArrayExpr: "array",
  RowExpr: "row",
  GroupingFunc: "grouping",
  XmlSerialize: "xmlserialize",
};

function nameOf(node: unknown): Named {
  const [type = "", inner = {}] = Object.entries((node ?? {}) as SqlNode)[0] ?? [];
  const body = inner as SqlNode;
  const fixed = FIXED[type];
  if (fixed !== undefined) return { name: fixed, strength: 2 };
  switch (type) {
    case "ColumnRef":
      return last(stringsOf(body["fields"]));
    case "FuncCall":
      return last(stringsOf(body["funcname"]));
    case "A_Indirection": {
      const field = stringsOf(body["indirection"]).at(-1);
      return field === undefined ? nameOf(body["arg"]) : { name: field, strength: 2 };
    }
    case "A_Expr":
      return body["kind"] === "AEXPR_NULLIF" ? { name: "nullif", strength: 2 } : NONE;
    case "TypeCast": {
      const arg = nameOf(body["arg"]);
      if (arg.strength > 1) return arg;
      const name = stringsOf((body["typeName"] as SqlNode | undefined)?.["names"]).at(-1);
      return name === undefined ? arg : { name, strength: 1 };
    }
    case "CollateClause":
      return nameOf(body["arg"]);
    case "CaseExpr": {
      const otherwise = nameOf(body["defresult"]);
      return otherwise.strength > 1 ? otherwise : { name: "case", strength: 1 };
    }
    case "MinMaxExpr":
      return { name: body["op"] === "IS_LEAST" ? "least" : "greatest", strength: 2 };
    case "SQLValueFunction":
      return { name: String(body["op"]).replace("SVFOP_", "").replace(/_N$/, "").toLowerCase(), strength: 2 };
    case "SubLink":
      return subquery(body);
    default:
      return NONE;
  }
}

function subquery(body: SqlNode): Named {
  if (body["subLinkType"] === "EXISTS_SUBLINK") return { name: "exists", strength: 2 };
  if (body["subLinkType"] === "ARRAY_SUBLINK") return { name: "array", strength: 2 };
  if (body["subLinkType"] !== "EXPR_SUBLINK") return NONE;
  const select = (body["subselect"] as SqlNode | undefined)?.["SelectStmt"] as SqlNode | undefined;
  const first = select ? targetsOf(select)?.[0] : undefined;
  const target = (first as SqlNode | undefined)?.["ResTarget"] as SqlNode | undefined;
  if (!target) return NONE;
  return typeof target["name"] === "string" ? { name: target["name"], strength: 2 } : nameOf(target["val"]);
}

function last(names: readonly string[]): Named {
  const name = names.at(-1);
  return name === undefined ? NONE : { name, strength: 2 };
}
