// Times: the service's forms (now-15m, RFC 3339), and local time as people read it.

const unit = { s: 1e3, m: 60e3, h: 3600e3, d: 86400e3, w: 7 * 86400e3 };
const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];
const days = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];
const two = (n) => String(n).padStart(2, '0');

export const presets = [
  ['now-5m', 'Last 5 minutes'], ['now-15m', 'Last 15 minutes'], ['now-1h', 'Last hour'], ['now-6h', 'Last 6 hours'],
  ['now-24h', 'Last 24 hours'], ['now-3d', 'Last 3 days'], ['now-7d', 'Last 7 days'], ['now-30d', 'Last 30 days'],
];

export const isRelative = (text) => text.startsWith('now');

// resolve returns the milliseconds of a time in one of the service's forms, NaN for others.
export function resolve(text, now = Date.now()) {
  const ago = /^now(?:-(\d+)([smhdw]))?$/.exec(text);
  if (ago) return ago[1] ? now - ago[1] * unit[ago[2]] : now;
  if (/^\d+$/.test(text)) return Number(text) * (Number(text) < 1e11 ? 1000 : 1);
  // JavaScript reads no small letters, and no second 60: that is the next minute's first.
  const leap = /:60(?=[.+Z-])/i.test(text);
  return Date.parse(text.toUpperCase().replace(/:60(?=[.+Z-])/, ':59').replace(/(\.\d{3})\d+/, '$1')) + (leap ? 1000 : 0);
}

export const iso = (ms) => new Date(ms).toISOString();

export function date(ms) {
  const t = new Date(ms);
  return `${days[t.getDay()]} ${t.getDate()} ${months[t.getMonth()]}`;
}

// clock tells the time of day as precisely as asked: 'm' minutes, 's' seconds, 'ms' milliseconds.
export function clock(ms, precision = 's') {
  const t = new Date(ms);
  const minutes = `${two(t.getHours())}:${two(t.getMinutes())}`;
  if (precision === 'm') return minutes;
  const seconds = `${minutes}:${two(t.getSeconds())}`;
  return precision === 's' ? seconds : `${seconds}.${String(t.getMilliseconds()).padStart(3, '0')}`;
}

// local is the form of <input type="datetime-local">.
export function local(ms) {
  const t = new Date(ms);
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}T${clock(ms)}`;
}

const sameDay = (a, b) => new Date(a).toDateString() === new Date(b).toDateString();

// span writes a range from one time to another, with the date once where it is the same.
export function span(from, to) {
  const precision = to - from < 2e3 ? 'ms' : from % 60e3 || to % 60e3 ? 's' : 'm';
  const end = clock(to, precision);
  return `${date(from)}, ${clock(from, precision)} – ${sameDay(from, to) ? end : `${date(to)}, ${end}`}`;
}

export function rangeName(from, to) {
  const preset = to === 'now' && presets.find(([start]) => start === from);
  if (preset) return preset[1];
  const ago = to === 'now' && /^now-(\d+)([smhdw])$/.exec(from);
  if (ago) {
    const name = { s: 'second', m: 'minute', h: 'hour', d: 'day', w: 'week' }[ago[2]];
    return `Last ${ago[1]} ${name}${ago[1] === '1' ? '' : 's'}`;
  }
  const [start, end] = [resolve(from), resolve(to)];
  return Number.isNaN(start + end) ? `${from} – ${to}` : span(start, end);
}

// zoneName is the zone's name, undefined where the browser tells none.
export const zoneName = () => Intl.DateTimeFormat().resolvedOptions().timeZone;

export function zone() {
  const minutes = -new Date().getTimezoneOffset();
  const offset = Math.abs(minutes);
  const name = zoneName();
  const utc = minutes === 0 ? 'UTC'
    : `UTC${minutes < 0 ? '−' : '+'}${Math.floor(offset / 60)}${offset % 60 ? `:${two(offset % 60)}` : ''}`;
  return name === 'UTC' || name === undefined ? utc : `${name}, ${utc}`;
}

const steps = [1e3, 5e3, 10e3, 30e3, 60e3, 300e3, 600e3, 1800e3, 3600e3, 3 * 3600e3, 6 * 3600e3, 12 * 3600e3,
  86400e3, 2 * 86400e3, 7 * 86400e3, 14 * 86400e3, 30 * 86400e3, 90 * 86400e3, 365 * 86400e3];

// ticks returns at most count [time, label] between from and to, on round local times.
export function ticks(from, to, count) {
  const step = steps.find((candidate) => (to - from) / candidate <= count) ?? (to - from) / count;
  const shift = new Date(from).getTimezoneOffset() * 60e3;
  const marks = [];
  for (let t = Math.ceil((from - shift) / step) * step + shift; t <= to; t += step) {
    const midnight = clock(t) === '00:00:00';
    marks.push([t, step >= 86400e3 || midnight ? date(t) : clock(t, step < 60e3 ? 's' : 'm')]);
  }
  return marks;
}

export function duration(ms) {
  for (const [name, size] of [['d', 86400e3], ['h', 3600e3], ['m', 60e3], ['s', 1e3]]) {
    if (ms >= size) return `${+(ms / size).toFixed(1)} ${{ d: 'd', h: 'h', m: 'min', s: 's' }[name]}`;
  }
  return `${ms} ms`;
}
