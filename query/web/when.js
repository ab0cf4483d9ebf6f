// Times as people type and paste them: 14:05, yesterday 14:05, now-1h30m, a line's own time.
import * as time from './time.js';

const day = 86400e3;
const months = 'jan feb mar apr may jun jul aug sep oct nov dec'.split(' ');
const weekdays = 'sun mon tue wed thu fri sat'.split(' ');

const clockText = String.raw`(?<h>\d{1,2}):(?<min>\d\d)(?::(?<s>\d\d)(?:[.,](?<f>\d{1,9}))?)?\s*(?<half>[ap]m)?`;
const zoneText = String.raw`\s*(?<z>z|utc|gmt|(?:utc|gmt)?[+-]\d{1,2}:?(?:\d\d)?)?`;
const dayTexts = [
  String.raw`(?<y>\d{4})[-/.](?<m>\d{1,2})[-/.](?<d>\d{1,2})`, // 2026-11-29, 2026/11/29
  String.raw`(?<d>\d{1,2})\.(?<m>\d{1,2})\.(?<y>\d{4})?`, // 29.11.2026, 29.11.
  String.raw`(?<d>\d{1,2})[-/ ](?<mon>[a-z]{3})[a-z]*(?:[-/ ,]\s*(?<y>\d{4}))?`, // 29/Nov/2026, 29 Nov
  String.raw`(?<mon>[a-z]{3})[a-z]*\s+(?<d>\d{1,2})(?:,?\s+(?<y>\d{4}))?(?!:)`, // Nov 29
  String.raw`(?<word>today|yesterday|tomorrow|sun|mon|tue|wed|thu|fri|sat)[a-z]*`,
];
const anchored = (text) => new RegExp(`^(?:${text})$`, 'i');
const forms = [
  ...dayTexts.flatMap((dayText) => [
    anchored(String.raw`(?:[a-z]{3},\s*)?${dayText}(?:\s*[t:,]\s*|\s+(?:at\s+)?)${clockText}${zoneText}`),
    anchored(dayText),
  ]),
  anchored(String.raw`${clockText}${zoneText}(?:\s+${dayTexts[4]})?`),
  anchored(String.raw`(?:[a-z]{3}\s+)?(?<mon>[a-z]{3})\s+(?<d>\d{1,2})\s+${clockText}(?:\s+(?<z>utc|gmt))?\s+(?<y>\d{4})`), // date's: Sun Nov 29 04:10:09 UTC 2026
];

// read returns what a text says: {text} for a form that the service counts from now, or {ms, note}; null if it says no time.
// isEnd: a day stands for its end. A time of day without a day is the last one that has been, or with after the first
// one behind that time.
export function read(typed, { now = Date.now(), isEnd = false, after = null } = {}) {
  const text = typed.trim().replace(/^[["']+|[\]"']+$/g, '').trim();
  const small = text.toLowerCase().replace(/\s+/g, ' ');
  if (small === 'now') return { text: 'now' };
  const ago = /^(?:-|last |now ?- ?)?((?:\d+ ?(?:s|m|h|d|w|sec|min|hour|hr|day|week)[a-z]*\s*)+)(ago)?$/.exec(small);
  if (ago && (ago[2] || /^(-|last|now)/.test(small))) {
    return { text: `now-${[...ago[1].matchAll(/(\d+) ?([smhdw])/g)].map(([, n, u]) => n + u).join('')}` };
  }
  if (/^now/.test(small)) return Number.isNaN(time.resolve(small, now)) ? null : { text: small };
  const digits = /^(\d{9,19})(\.\d+)?$/.exec(small);
  if (digits) {
    const n = Number(small);
    const size = [1e11, 1e14, 1e17, Infinity].findIndex((bound) => n < bound);
    return { ms: Math.floor(n * [1e3, 1, 1e-3, 1e-6][size]) };
  }
  for (const form of forms) {
    const found = form.exec(small);
    const read = found && fromParts(found.groups, { now, isEnd, after });
    if (read) return read;
  }
  const exact = /^\d+$/.test(text) ? NaN : time.resolve(text, now, isEnd);
  return Number.isNaN(exact) ? null : { ms: exact };
}

function fromParts({ y, m, mon, d, word, h, min, s = 0, f = '', half, z }, { now, isEnd, after }) {
  const today = Math.floor(time.wall(now) / day) * day;
  let shown = today;
  if (d !== undefined) {
    const month = mon === undefined ? m - 1 : months.indexOf(mon);
    const at = (year) => Date.UTC(year, month, d);
    shown = at(y ?? new Date(today).getUTCFullYear());
    if (y === undefined && shown > today + day) shown = at(new Date(today).getUTCFullYear() - 1); // Dec 31, in January
    const t = new Date(shown);
    if (month < 0 || t.getUTCMonth() !== month || t.getUTCDate() !== Number(d)) return null;
  } else if (word) {
    const weekday = weekdays.indexOf(word);
    shown += { yesterday: -day, tomorrow: day }[word] ?? 0;
    if (weekday >= 0) shown -= ((new Date(today).getUTCDay() - weekday + 7) % 7) * day;
  }
  if (h === undefined) return { ms: time.instant(shown + (isEnd ? day : 0)) };
  let hours = Number(h);
  if (half) {
    if (hours < 1 || hours > 12) return null;
    hours = (hours % 12) + (half === 'pm' ? 12 : 0);
  }
  if (hours > 24 || (hours === 24 && (min > 0 || s > 0)) || min > 59 || s > 60) return null;
  shown += hours * 3600e3 + min * 60e3 + s * 1e3 + Number(f.padEnd(3, '0').slice(0, 3));
  if (z !== undefined) return { ms: shown - minutesOf(z) * 60e3 };
  const isClock = d === undefined && !word;
  const at = (wanted) => time.instant(wanted, isEnd);
  if (isClock && after !== null) {
    shown = Math.floor(time.wall(after) / day) * day + (shown - today);
    if (at(shown) <= after) shown += day;
  } else if (isClock && at(shown) > now) shown -= day;
  const all = time.instants(shown);
  const note = all.length === 2 ? `the clocks show it twice; this is the ${isEnd ? 'second' : 'first'}`
    : all.length ? undefined : 'the clocks skip it; this is when they do';
  return { ms: at(shown), note };
}

// minutesOf reads an offset: Z, UTC, +0200, utc+2, -03:30.
function minutesOf(zone) {
  const found = /([+-])(\d{1,2}):?(\d\d)?$/.exec(zone);
  return found ? (found[1] === '-' ? -1 : 1) * (found[2] * 60 + Number(found[3] ?? 0)) : 0;
}

// twoOf returns the two times in a text that has a range, such as 14:05 – 14:20, or null.
export function twoOf(text) {
  const parts = text.split(/\s+(?:-|–|—|to|until)\s+/);
  return parts.length === 2 && parts.every((part) => read(part)) ? parts : null;
}
