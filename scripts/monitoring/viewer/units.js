// Numbers as Grafana's units show them. Names of units: https://grafana.com/docs (s, bytes, percentunit, short, reqps, cps).

const digits = (value, steps = 3) => String(Number(value.toPrecision(steps)));

function scaled(value, base, names) {
  let power = 0;
  while (Math.abs(value) >= base && power < names.length - 1) { value /= base; power += 1; }
  return [digits(value), names[power]];
}

function seconds(value) {
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1e-3) return `${digits(value * 1e6)} µs`;
  if (size < 1) return `${digits(value * 1e3)} ms`;
  if (size < 120) return `${digits(value)} s`;
  return `${digits(value / 60)} min`;
}

const FORMATS = {
  s: seconds,
  percentunit: (value) => `${digits(value * 100)} %`,
  bytes: (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]).join(" "),
  reqps: (value) => `${digits(value)} req/s`,
  cps: (value) => `${digits(value)} /s`,
  short: (value) => scaled(value, 1000, ["", " k", " M", " G"]).join(""),
  none: (value) => digits(value),
};

export function format(value, unit) {
  if (value === null || Number.isNaN(value)) return "–";
  const known = FORMATS[unit];
  if (!known) throw new Error(`no format for unit ${unit}`);
  return known(value);
}

// Round values for an axis from 0 (or the smallest) to the largest value, about `wanted` of them.
export function ticks(low, high, unit, wanted = 4) {
  const base = unit === "bytes" ? 1024 : 10;
  const rough = (high - low) / wanted || 1;
  const power = base ** Math.floor(Math.log(rough) / Math.log(base));
  const nice = unit === "bytes" ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] : [1, 2, 5, 10];
  const step = nice.map((factor) => factor * power).find((size) => size >= rough * 0.99);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}
