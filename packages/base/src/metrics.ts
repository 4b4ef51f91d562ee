/**
 * Metrics in the Prometheus text format, version 0.0.4. Counters only count; nothing is sampled into one.
 * Source: https://prometheus.io/docs/instrumenting/exposition_formats/
 */
export type Labels = Readonly<Record<string, string>>;
export type MetricType = "counter" | "gauge" | "histogram";

export interface MetricInfo {
  readonly name: string;
  readonly type: MetricType;
  readonly help: string;
}

const DEFAULT_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

interface Series {
  labels: Labels;
  value: number;
  buckets?: number[];
  count?: number;
}

class Family {
  readonly info: MetricInfo;
  readonly bounds: readonly number[];
  readonly series = new Map<string, Series>();

  constructor(info: MetricInfo, bounds: readonly number[]) {
    this.info = info;
    this.bounds = bounds;
  }

  at(labels: Labels): Series {
    const key = formatLabels(labels);
    let found = this.series.get(key);
    if (!found) {
      found = { labels, value: 0 };
      if (this.info.type === "histogram") {
        found.buckets = this.bounds.map(() => 0);
        found.count = 0;
      }
      this.series.set(key, found);
    }
    return found;
  }
}

/** All metrics of one process. Constructed by the role, handed to its parts. */
export class Metrics {
  readonly #families = new Map<string, Family>();

  counter(name: string, help: string): { inc(labels?: Labels, by?: number): void } {
    const family = this.#family({ name, type: "counter", help });
    return {
      inc: (labels = {}, by = 1) => {
        if (!(by >= 0)) throw new RangeError(`counter ${name} cannot go down`);
        family.at(labels).value += by;
      },
    };
  }

  gauge(name: string, help: string): { set(value: number, labels?: Labels): void; drop(labels?: Labels): void } {
    const family = this.#family({ name, type: "gauge", help });
    return {
      set: (value, labels = {}) => {
        family.at(labels).value = value;
      },
      drop: (labels = {}) => {
        family.series.delete(formatLabels(labels));
      },
    };
  }

  /** Observes seconds (or whatever unit ends the name). */
  histogram(name: string, help: string, bounds = DEFAULT_BUCKETS): { observe(value: number, labels?: Labels): void } {
    const family = this.#family({ name, type: "histogram", help }, bounds);
    return {
      observe: (value, labels = {}) => {
        const series = family.at(labels);
        series.value += value;
        series.count = (series.count ?? 0) + 1;
        family.bounds.forEach((bound, i) => {
          if (value <= bound && series.buckets) series.buckets[i] = (series.buckets[i] ?? 0) + 1;
        });
      },
    };
  }

  /** The exposition, families in the order of their names. */
  render(): string {
    const families = [...this.#families.values()].toSorted((a, b) => (a.info.name < b.info.name ? -1 : 1));
    return families.map(renderFamily).join("");
  }

  #family(info: MetricInfo, bounds: readonly number[] = []): Family {
    let family = this.#families.get(info.name);
    if (!family) {
      family = new Family(info, bounds);
      this.#families.set(info.name, family);
    }
    return family;
  }
}

function renderFamily(family: Family): string {
  const { name, type, help } = family.info;
  const lines = [`# HELP ${name} ${help.replace(/\\/g, "\\\\").replace(/\n/g, "\\n")}`, `# TYPE ${name} ${type}`];
  for (const series of family.series.values()) {
    if (series.buckets) {
      family.bounds.forEach((bound, i) => {
        lines.push(`${name}_bucket${formatLabels({ ...series.labels, le: String(bound) })} ${series.buckets?.[i]}`);
      });
      lines.push(`${name}_bucket${formatLabels({ ...series.labels, le: "+Inf" })} ${series.count}`);
      lines.push(`${name}_sum${formatLabels(series.labels)} ${series.value}`);
      lines.push(`${name}_count${formatLabels(series.labels)} ${series.count}`);
    } else {
      lines.push(`${name}${formatLabels(series.labels)} ${series.value}`);
    }
  }
  return `${lines.join("\n")}\n`;
}

function formatLabels(labels: Labels): string {
  const keys = Object.keys(labels).toSorted();
  if (keys.length === 0) return "";
  const escape = (v: string): string => v.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n");
  return `{${keys.map((k) => `${k}="${escape(labels[k] ?? "")}"`).join(",")}}`;
}
