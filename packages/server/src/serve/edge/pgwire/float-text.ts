/**
 * Floats as Postgres prints them with `extra_float_digits` >= 1: the shortest digits that give the value back, in exponent form when
 * the exponent is below -4 or beyond the type's sure digits (15 and 6).
 * Source: https://www.postgresql.org/docs/current/datatype-numeric.html#DATATYPE-FLOAT
 */
export function float8Text(value: number): string {
  return special(value) ?? shortest(value.toExponential(), 15);
}

export function float4Text(value: number): string {
  return special(value) ?? shortest(shortestSingle(value), 6);
}

function special(value: number): string | null {
  if (Number.isNaN(value)) return "NaN";
  if (value === Infinity) return "Infinity";
  if (value === -Infinity) return "-Infinity";
  if (value === 0) return Object.is(value, -0) ? "-0" : "0";
  return null;
}

/** The fewest digits that round to the same 32-bit float. */
function shortestSingle(value: number): string {
  for (let digits = 0; digits < 9; digits++) {
    const text = value.toExponential(digits);
    if (Math.fround(Number(text)) === value) return text;
  }
  return value.toExponential();
}

/** `text` in the form d.ddde±x. */
function shortest(text: string, sureDigits: number): string {
  const match = /^(-?)(\d)(?:\.(\d+))?e([+-]\d+)$/.exec(text);
  if (!match) return text;
  const [, sign = "", first = "", more = "", power = "0"] = match;
  const digits = (first + more).replace(/0+$/, "") || "0";
  const exponent = Number(power);
  if (exponent < -4 || exponent >= sureDigits) {
    const fraction = digits.length > 1 ? `.${digits.slice(1)}` : "";
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return `${sign}${digits[0] ?? "0"}${fraction}e${exponent < 0 ? "-" : "+"}${size}`;
  }
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
  if (digits.length <= exponent + 1) return sign + digits.padEnd(exponent + 1, "0");
  return `${sign}${digits.slice(0, exponent + 1)}.${digits.slice(exponent + 1)}`;
}
