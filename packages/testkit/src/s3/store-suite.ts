/** What every object store must do: one suite, run by each implementation's test. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ObjectStore } from "@spillway/lake/store/store";

export interface StoreUnderTest {
  readonly store: ObjectStore;
  close(): Promise<void>;
}

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const textOf = (data: Uint8Array): string => new TextDecoder().decode(data);

async function collect(store: ObjectStore, prefix: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { path } of store.list(prefix)) found.push(path.slice(store.root.length + 1));
  return found.toSorted();
}

/** `bigBytes`: a size that the store writes in several pieces. */
export function storeSuite(name: string, bigBytes: number, make: () => Promise<StoreUnderTest>): void {
  describe(name, () => {
    let under: StoreUnderTest;
    let store: ObjectStore;
    let at: (key: string) => string;

    beforeAll(async () => {
      under = await make();
      store = under.store;
      at = (key) => `${store.root}/${key}`;
    });
    afterAll(() => under?.close());

    test("what was put is got, whole and in ranges", async () => {
      expect(await store.put(at("a/one.bin"), bytes("hello lake"))).toEqual({ size: 10 });
      expect(textOf(await store.get(at("a/one.bin")))).toBe("hello lake");
      expect(textOf(await store.getRange(at("a/one.bin"), 6, 4))).toBe("lake");
      expect((await store.getRange(at("a/one.bin"), 3, 0)).length).toBe(0);
      expect((await store.head(at("a/one.bin")))?.size).toBe(10);
    });

    test("an empty object is an object", async () => {
      await store.put(at("a/empty"), new Uint8Array(0));
      expect((await store.get(at("a/empty"))).length).toBe(0);
      expect((await store.head(at("a/empty")))?.size).toBe(0);
    });

    test("a put replaces; a conditional put does not", async () => {
      await store.put(at("a/two"), bytes("1"));
      await store.put(at("a/two"), bytes("22"));
      await expect(store.put(at("a/two"), bytes("333"), { ifNoneMatch: true })).rejects.toMatchObject({
        code: "store_precondition",
      });
      expect(textOf(await store.get(at("a/two")))).toBe("22");
      await store.put(at("a/three"), bytes("3"), { ifNoneMatch: true });
      expect(textOf(await store.get(at("a/three")))).toBe("3");
    });

    test("of many conditional puts at once exactly one wins, and its bytes stay", async () => {
      const results = await Promise.allSettled(
        Array.from({ length: 8 }, (_, i) => store.put(at("a/race"), bytes(`writer ${i}`), { ifNoneMatch: true })),
      );
      const winners = results.flatMap((result, i) => (result.status === "fulfilled" ? [i] : []));
      expect(winners).toHaveLength(1);
      expect(textOf(await store.get(at("a/race")))).toBe(`writer ${winners[0]}`);
    });

    test("what is not there is not found, by name", async () => {
      const missing = { code: "store_not_found" };
      await expect(store.get(at("a/none"))).rejects.toMatchObject(missing);
      await expect(store.getRange(at("a/none"), 0, 1)).rejects.toMatchObject(missing);
      await expect(store.get(at("a/none/below"))).rejects.toMatchObject(missing);
      expect(await store.head(at("a/none"))).toBeNull();
      expect(await store.head(at("never/heard"))).toBeNull();
      await store.delete([at("a/none"), at("never/heard")]);
    });

    test("a range beyond the end is corruption, not a short answer", async () => {
      await store.put(at("a/short"), bytes("12345"));
      await expect(store.getRange(at("a/short"), 3, 4)).rejects.toMatchObject({ code: "store_corrupt" });
      await expect(store.getRange(at("a/short"), 9, 1)).rejects.toMatchObject({ code: "store_corrupt" });
    });

    test("streams of any length and chunking arrive unchanged", async () => {
      const whole = new Uint8Array(bigBytes + 12_345).map((_, i) => (i * 31 + (i >> 8)) & 255);
      const chunk = new Uint8Array(70_001);
      async function* stream(): AsyncIterable<Uint8Array> {
        // The buffer is used again for every chunk, as some streams do.
        for (let i = 0; i < whole.length; i += chunk.length) {
          const part = whole.subarray(i, i + chunk.length);
          chunk.set(part);
          yield chunk.subarray(0, part.length);
        }
      }
      expect(await store.put(at("big/one"), stream())).toEqual({ size: whole.length });
      expect(Buffer.compare(await store.get(at("big/one")), whole)).toBe(0);
      await expect(store.put(at("big/one"), stream(), { ifNoneMatch: true })).rejects.toMatchObject({
        code: "store_precondition",
      });
      expect(
        Buffer.compare(await store.getRange(at("big/one"), bigBytes - 5, 10), whole.slice(bigBytes - 5, bigBytes + 5)),
      ).toBe(0);
    });

    test("a stream that fails leaves nothing", async () => {
      async function* broken(): AsyncIterable<Uint8Array> {
        yield new Uint8Array(bigBytes + 1);
        yield new Uint8Array(bigBytes + 1);
        throw new Error("the source broke");
      }
      await expect(store.put(at("broken/x"), broken())).rejects.toThrow("the source broke");
      expect(await store.head(at("broken/x"))).toBeNull();
      expect(await collect(store, at("broken/"))).toEqual([]);
    });

    test("lists by prefix, with sizes and times", async () => {
      const before = Date.now() - 60_000;
      for (const key of ["l/a/1", "l/a/2", "l/ab", "l/b/c/d", "la"]) await store.put(at(key), bytes(key));
      expect(await collect(store, at("l/"))).toEqual(["l/a/1", "l/a/2", "l/ab", "l/b/c/d"]);
      expect(await collect(store, at("l/a"))).toEqual(["l/a/1", "l/a/2", "l/ab"]);
      expect(await collect(store, at("l/a/"))).toEqual(["l/a/1", "l/a/2"]);
      expect(await collect(store, at("nothing/"))).toEqual([]);
      expect(await collect(store, store.root)).toContain("la");
      for await (const object of store.list(at("l/b/"))) {
        expect(object).toMatchObject({ path: at("l/b/c/d"), size: 7 });
        expect(object.modifiedMs).toBeGreaterThan(before);
      }
    });

    test("deletes many, and again", async () => {
      const keys = Array.from({ length: 25 }, (_, i) => at(`d/${i}`));
      await Promise.all(keys.map((key) => store.put(key, bytes("x"))));
      await store.delete(keys.slice(0, 20));
      expect(await collect(store, at("d/"))).toEqual(["d/20", "d/21", "d/22", "d/23", "d/24"]);
      await store.delete(keys);
      await store.delete(keys);
      expect(await collect(store, at("d/"))).toEqual([]);
    });

    test("names with spaces, percent signs, umlauts and quotes", async () => {
      const key = "odd/a b%20c=d+e&f<g>'h'ü~#?.parquet";
      await store.put(at(key), bytes("odd"));
      expect(textOf(await store.get(at(key)))).toBe("odd");
      expect(await collect(store, at("odd/"))).toEqual([key]);
      await store.delete([at(key)]);
      expect(await store.head(at(key))).toBeNull();
    });

    test("no path leads outside the root", async () => {
      const invalid = { code: "store_path_invalid" };
      for (const path of [at("../x"), at("a/../../x"), `${store.root}x/y`, "relative/x", "gs://b/x", store.root]) {
        await expect(store.put(path, bytes("x"))).rejects.toMatchObject(invalid);
        await expect(store.get(path)).rejects.toMatchObject(invalid);
        await expect(store.delete([path])).rejects.toMatchObject(invalid);
      }
    });
  });
}
