// Times: the service's forms (now-15m, RFC 3339), and the time of day as people read it, in their zone or in UTC. Each
// time is shown in the offset that holds at that time.

const unit = { s: 1e3, m: 60e3, h: 3600e3, d: 86400e3, w: 7 * 86400e3 };
const day = unit.d;
const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
const days = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];
const two = (n) => String(n).padStart(2, '0');

let utc = false;

// useUTC chooses what all functions here read times in: UTC, or the browser's zone.
export const useUTC = (on) => { utc = on; };

export const presets = [
  ['now-5m', 'Last 5 minutes'], ['now-15m', 'Last 15 minutes'], ['now-1h', 'Last hour'], ['now-6h', 'Last 6 hours'],
  ['now-24h', 'Last 24 hours'], ['now-3d', 'Last 3 days'], ['now-7d', 'Last 7 days'], ['now-30d', 'Last 30 days'],
];

export const isRelative = (text) => text.startsWith('now');

const relative = /^now((?:[+-](?:\d+[smhdw])+)*)(?:\/([smhdw]))?$/;

// resolve returns the milliseconds of a time in one of the service's forms, NaN for others. isEnd asks for the end of what
// has a length: a day, or now/h.
export function resolve(text, now = Date.now(), isEnd = false) {
  const r = relative.exec(text);
  if (r) {
    const [, distance, round] = r;
    let sign = 1;
    let at = now;
    for (const [, turn, n, u] of distance.matchAll(/([+-])?(\d+)(\w)/g)) {
      if (turn) sign = turn === '-' ? -1 : 1;
      at += sign * n * unit[u];
    }
    if (!round) return at;
    const monday = round === 'w' ? 4 * day : 0; // 1970 began on a Thursday
    return Math.floor((at - monday) / unit[round]) * unit[round] + monday + (isEnd ? unit[round] : 0);
  }
  if (/^\d{4}-\d\d-\d\d$/.test(text)) {
    const at = Date.parse(text);
    return at >= -8.64e15 && iso(at).startsWith(text) ? at + (isEnd ? day : 0) : NaN; // some browsers take 30 February
  }
  if (/^\d+$/.test(text)) return Number(text) * (Number(text) < 1e11 ? 1000 : 1);
  if (!/^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/i.test(text)) return NaN;
  // JavaScript reads no small letters, and no second 60: that is the next minute's first.
  const leap = /:60(?=[.+Z-])/i.test(text);
  return Date.parse(text.toUpperCase().replace(' ', 'T').replace(/:60(?=[.+Z-])/, ':59').replace(/(\.\d{3})\d+/, '$1')) + (leap ? 1000 : 0);
}

export const iso = (ms) => new Date(ms).toISOString();

// offset returns the minutes by which the clocks are ahead of UTC at a time.
export const offset = (ms) => (utc ? 0 : -new Date(ms).getTimezoneOffset());

// wall returns what the clocks show at a time, as the milliseconds at which UTC's would show it.
export const wall = (ms) => ms + offset(ms) * 60e3;

// instants returns the times at which the clocks show something, given as by wall: none where they are put forward over it,
// two where they are put back.
export function instants(shown) {
  const offsets = new Set([-1, 0, 1].map((days) => offset(shown + days * day)));
  return [...offsets].map((minutes) => shown - minutes * 60e3).filter((ms) => wall(ms) === shown).sort((a, b) => a - b);
}

// instant returns the time, or of two the first (or the last). What the clocks skip is the moment at which they do.
export function instant(shown, last = false) {
  const found = instants(shown);
  if (found.length) return last ? found.at(-1) : found[0];
  let [before, after] = [shown - day, shown + day]; // the clocks are put forward between the two
  while (after - before > 1) {
    const middle = Math.floor((before + after) / 2);
    if (wall(middle) < shown) before = middle;
    else after = middle;
  }
  return after;
}

export function date(ms) {
  const t = new Date(wall(ms));
  return `${days[t.getUTCDay()]} ${t.getUTCDate()} ${months[t.getUTCMonth()]}`;
}

// clock tells the time of day as precisely as asked: 'm' minutes, 's' seconds, 'ms' milliseconds.
export function clock(ms, precision = 's') {
  const text = new Date(wall(ms)).toISOString().slice(-13, -1); // the year may have more than four digits
  return text.slice(0, { m: 5, s: 8, ms: 12 }[precision]);
}

// local writes a time as logs do, without a zone: 2026-11-29 14:05:07, with milliseconds if there are any.
export const local = (ms) => new Date(wall(ms)).toISOString().slice(0, 23).replace('T', ' ').replace(/\.000$/, '');

const sameDay = (a, b) => Math.floor(wall(a) / day) === Math.floor(wall(b) / day);

export const isDated = (from, to) => !sameDay(from, to);

// span writes a range from one time to another, with the date once where it is the same, and the offsets where they differ.
export function span(from, to) {
  const precision = to - from < 2e3 ? 'ms' : from % 60e3 || to % 60e3 ? 's' : 'm';
  const [start, end] = [from, to].map((ms) => clock(ms, precision) + (offset(from) === offset(to) ? '' : ` (${offsetText(ms)})`));
  return `${date(from)}, ${start} – ${sameDay(from, to) ? end : `${date(to)}, ${end}`}`;
}

export function rangeName(from, to) {
  const preset = to === 'now' && presets.find(([start]) => start === from);
  if (preset) return preset[1];
  const ago = to === 'now' && /^now-(\d+)([smhdw])$/.exec(from);
  if (ago) {
    const name = { s: 'second', m: 'minute', h: 'hour', d: 'day', w: 'week' }[ago[2]];
    return `Last ${ago[1]} ${name}${ago[1] === '1' ? '' : 's'}`;
  }
  if (isRelative(from) || isRelative(to)) return `${from} – ${to}`;
  const [start, end] = [resolve(from), resolve(to, Date.now(), true)];
  return Number.isNaN(start + end) ? `${from} – ${to}` : span(start, end);
}

// zoneName is the zone's name, undefined where the browser tells none.
export const zoneName = () => (utc ? 'UTC' : Intl.DateTimeFormat().resolvedOptions().timeZone);

export function offsetText(ms) {
  const minutes = offset(ms);
  const size = Math.abs(minutes);
  return minutes === 0 ? 'UTC' : `UTC${minutes < 0 ? '−' : '+'}${Math.floor(size / 60)}${size % 60 ? `:${two(size % 60)}` : ''}`;
}

// zone names the zone and the offset that holds at a time.
export function zone(ms = Date.now()) {
  const name = zoneName();
  return name === 'UTC' || name === undefined ? offsetText(ms) : `${name}, ${offsetText(ms)}`;
}

const steps = [1e3, 5e3, 10e3, 30e3, 60e3, 300e3, 600e3, 1800e3, 3600e3, 3 * 3600e3, 6 * 3600e3, 12 * 3600e3,
  day, 2 * day, 7 * day, 14 * day, 30 * day, 90 * day, 365 * day];

// ticks returns about count [time, label] between from and to, where the clocks show something round.
export function ticks(from, to, count) {
  const step = steps.find((candidate) => (to - from) / candidate <= count) ?? Math.ceil((to - from) / count / day) * day;
  const marks = [];
  if (step >= day) {
    const monday = step % (7 * day) ? 0 : 4 * day;
    for (let shown = Math.ceil((wall(from) - monday) / step) * step + monday; ; shown += step) {
      const at = instant(shown);
      if (at > to) return marks;
      if (at >= from) marks.push([at, date(at)]);
    }
  }
  const probe = step % 900e3 ? Math.min(step, 300e3) : 900e3; // offsets from UTC are multiples of a quarter of an hour
  for (let t = Math.ceil(from / probe) * probe; t <= to; t += probe) {
    const begins = t > from && !sameDay(t - 1, t); // a day, also one without a midnight
    if (wall(t) % step && !begins) continue;
    marks.push([t, begins || wall(t) % day === 0 ? date(t) : clock(t, step < 60e3 ? 's' : 'm')]);
  }
  return marks;
}

export function duration(ms) {
  for (const [name, size] of [['d', day], ['h', 3600e3], ['m', 60e3], ['s', 1e3]]) {
    if (ms >= size) return `${+(ms / size).toFixed(1)} ${{ d: 'd', h: 'h', m: 'min', s: 's' }[name]}`;
  }
  return `${ms} ms`;
}
