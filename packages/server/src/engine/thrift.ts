/** The few forms of Thrift's compact protocol that a Parquet footer needs, written. Source: thrift-compact-protocol.md. */

const [TRUE, FALSE, I32, I64, BINARY, LIST, STRUCT] = [1, 2, 5, 6, 8, 9, 12] as const;

/** Unsigned LEB128. */
export function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest > 127; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
  bytes.push(rest);
  return bytes;
}

/** Signed numbers, small ones first: 0, -1, 1, -2, … Exact to 2^52. */
export function zigzag(value: number): number[] {
  return varint(value < 0 ? -value * 2 - 1 : value * 2);
}

/** One struct; those inside it are written by writers of their own. */
export class ThriftStruct {
  readonly #bytes: number[] = [];
  #lastId = 0;

  i32(id: number, value: number): this {
    this.#field(id, I32);
    return this.#push(zigzag(value));
  }

  i64(id: number, value: number): this {
    this.#field(id, I64);
    return this.#push(zigzag(value));
  }

  bool(id: number, value: boolean): this {
    this.#field(id, value ? TRUE : FALSE);
    return this;
  }

  text(id: number, value: string): this {
    this.#field(id, BINARY);
    return this.#push(binary(value));
  }

  struct(id: number, value: ThriftStruct): this {
    this.#field(id, STRUCT);
    return this.#push(value.bytes());
  }

  structs(id: number, values: readonly ThriftStruct[]): this {
    this.#list(id, STRUCT, values.length);
    for (const value of values) this.#push(value.bytes());
    return this;
  }

  numbers(id: number, values: readonly number[]): this {
    this.#list(id, I32, values.length);
    for (const value of values) this.#push(zigzag(value));
    return this;
  }

  texts(id: number, values: readonly string[]): this {
    this.#list(id, BINARY, values.length);
    for (const value of values) this.#push(binary(value));
    return this;
  }

  /** The struct with its end. */
  bytes(): number[] {
    return [...this.#bytes, 0];
  }

  /** Field ids rise by 1 to 15, as Parquet's do. */
  #field(id: number, type: number): void {
    this.#bytes.push(((id - this.#lastId) << 4) | type);
    this.#lastId = id;
  }

  #list(id: number, type: number, length: number): void {
    this.#field(id, LIST);
    this.#push(length < 15 ? [(length << 4) | type] : [0xf0 | type, ...varint(length)]);
  }

  #push(bytes: readonly number[]): this {
    for (const byte of bytes) this.#bytes.push(byte);
    return this;
  }
}

function binary(value: string): number[] {
  const bytes = Buffer.from(value, "utf8");
  return [...varint(bytes.length), ...bytes];
}
