/**
 * Values of a column batch as text that Postgres reads back to the same value, under the canonical settings.
 * For COPY FROM, literals and messages; rows in number leave a process as batches.
 */
import {
  INFINITY_DAYS,
  INFINITY_I64,
  NEG_INFINITY_DAYS,
  NEG_INFINITY_I64,
  isVarColumn,
  type Column,
  type FixedColumn,
} from "@spillway/base/columns";

const DAY_US = 86_400_000_000n;

/** The value at `row` as text, or null for NULL. */
export function textOf(column: Column, row: number): string | null {
  if (column.validity !== null && column.validity[row] === 0) return null;
  if (!isVarColumn(column)) return fixedText(column, row);
  const { heap, offsets } = column;
  const bytes = bufferOf(heap);
  const start = offsets[row] ?? 0;
  const end = offsets[row + 1] ?? 0;
  return column.spec.kind === "bytes" ? `\\x${bytes.toString("hex", start, end)}` : bytes.toString("utf8", start, end);
}

/** The last heap's view: values of one column are asked for one after the other. */
let lastHeap: Uint8Array | null = null;
let lastBuffer: Buffer = Buffer.alloc(0);

function bufferOf(heap: Uint8Array): Buffer {
  if (heap !== lastHeap) {
    lastBuffer = Buffer.from(heap.buffer, heap.byteOffset, heap.byteLength);
    lastHeap = heap;
  }
  return lastBuffer;
}

function fixedText({ spec, data }: FixedColumn, row: number): string {
  switch (spec.kind) {
    case "bool":
      return data[row] === 0 ? "false" : "true";
    case "float32":
    case "float64":
      return Object.is(data[row], -0) ? "-0" : String(data[row]);
    case "date":
      return dateText(Number(data[row]));
    case "time":
      return timeText(Number(data[row]));
    case "timestamp":
      return timestampText(BigInt(data[row] ?? 0), "");
    case "timestamptz":
      return timestampText(BigInt(data[row] ?? 0), "+00");
    case "decimal":
      return decimalText(unscaledAt(data as BigInt64Array, row), spec.decimal?.scale ?? 0);
    case "uuid":
      return uuidText(data as Uint8Array, row);
    default:
      return String(data[row]);
  }
}

/** The unscaled value of a decimal column at `row`. */
export function unscaledAt(data: BigInt64Array, row: number): bigint {
  return ((data[2 * row + 1] ?? 0n) << 64n) | BigInt.asUintN(64, data[2 * row] ?? 0n);
}

/** An unscaled value with its decimal point. */
export function decimalText(unscaled: bigint, scale: number): string {
  const negative = unscaled < 0n;
  const digits = (negative ? -unscaled : unscaled).toString().padStart(scale + 1, "0");
  const whole = digits.slice(0, digits.length - scale);
  const text = scale === 0 ? whole : `${whole}.${digits.slice(digits.length - scale)}`;
  return negative ? `-${text}` : text;
}

function uuidText(data: Uint8Array, row: number): string {
  const hex = Buffer.from(data.subarray(row * 16, row * 16 + 16)).toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** Year, month and day of a count of days since 1970, proleptic Gregorian; year 0 is 1 BC. */
function civil(days: number): { year: number; month: number; day: number } {
  const z = days + 719_468;
  const era = Math.floor(z / 146_097);
  const dayOfEra = z - era * 146_097;
  const yearOfEra = Math.floor(
    (dayOfEra - Math.floor(dayOfEra / 1460) + Math.floor(dayOfEra / 36_524) - Math.floor(dayOfEra / 146_096)) / 365,
  );
  const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const m = Math.floor((5 * dayOfYear + 2) / 153);
  const month = m < 10 ? m + 3 : m - 9;
  return {
    year: yearOfEra + era * 400 + (month <= 2 ? 1 : 0),
    month,
    day: dayOfYear - Math.floor((153 * m + 2) / 5) + 1,
  };
}

function pad(value: number, width: number): string {
  return String(value).padStart(width, "0");
}

function civilText(days: number): { text: string; era: string } {
  const { year, month, day } = civil(days);
  const era = year <= 0 ? " BC" : "";
  return { text: `${pad(year <= 0 ? 1 - year : year, 4)}-${pad(month, 2)}-${pad(day, 2)}`, era };
}

function dateText(days: number): string {
  if (days === INFINITY_DAYS) return "infinity";
  if (days === NEG_INFINITY_DAYS) return "-infinity";
  const { text, era } = civilText(days);
  return text + era;
}

/** `HH:MM:SS` with as many decimals as there are. */
function timeText(micros: number): string {
  const seconds = Math.floor(micros / 1_000_000);
  const fraction = micros - seconds * 1_000_000;
  const text = `${TWO[Math.floor(seconds / 3600)]}:${TWO[Math.floor(seconds / 60) % 60]}:${TWO[seconds % 60]}`;
  return fraction === 0 ? text : `${text}.${pad(fraction, 6).replace(/0+$/, "")}`;
}

const TWO = Array.from({ length: 60 }, (_, i) => pad(i, 2));

function timestampText(micros: bigint, zone: string): string {
  if (micros === INFINITY_I64) return "infinity";
  if (micros === NEG_INFINITY_I64) return "-infinity";
  const exact = Number(micros);
  if (Number.isSafeInteger(exact)) {
    // Both products are below 2^53, so that this is exact, and several times as fast as with bigints.
    const days = Math.floor(exact / DAY_MICROS);
    return dayAndTime(days, exact - days * DAY_MICROS, zone);
  }
  let days = micros / DAY_US;
  if (micros < days * DAY_US) days -= 1n;
  return dayAndTime(Number(days), Number(micros - days * DAY_US), zone);
}

const DAY_MICROS = Number(DAY_US);
let lastDay: { readonly days: number; readonly text: string; readonly era: string } = { days: 0, ...civilText(0) };

function dayAndTime(days: number, micros: number, zone: string): string {
  if (lastDay.days !== days) lastDay = { days, ...civilText(days) };
  return `${lastDay.text} ${timeText(micros)}${zone}${lastDay.era}`;
}
