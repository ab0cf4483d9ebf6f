// The query service's endpoints. Paths are relative, so the page works behind a proxy that gives it a prefix.
import { parse } from './json.js';

const keyName = 'millrace.key';

// Failure is an answer that is not 2xx, or none (status 0).
export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(keyName) ?? localStorage.getItem(keyName),
  set(value, remember) {
    this.forget();
    (remember ? localStorage : sessionStorage).setItem(keyName, value);
  },
  forget() {
    sessionStorage.removeItem(keyName);
    localStorage.removeItem(keyName);
  },
};

export function address(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== '' && value != null);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

async function request(path, parameters, { signal, headers = {} } = {}) {
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(address(path, parameters), { signal, headers });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure(0, 'The query service can’t be reached.');
  }
  const date = Date.parse(response.headers.get('Date'));
  if (date) {
    const before = now() - Date.now();
    ahead = date + 500 - Date.now(); // it has whole seconds
    if (Math.abs(now() - Date.now() - before) > 5000) dispatchEvent(new Event('clock'));
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = text || response.statusText;
  try {
    message = JSON.parse(text).error ?? message;
  } catch { /* a proxy's own words */ }
  throw new Failure(response.status, message);
}

const json = async (...args) => parse(await (await request(...args)).text());

export const logs = (search, options) => json('logs', search, options);
export const one = (id, options) => json(`logs/${encodeURIComponent(id)}`, {}, options);

let ahead = 0; // ms by which the service's clock is ahead of this machine's

// now is the time by the service's clock, as far as that is known, in ms. Less than some seconds are no difference.
export const now = () => Date.now() + (Math.abs(ahead) > 5000 ? ahead : 0);
export async function fields(search, options) {
  const answer = await json('logs/fields', search, options);
  answer.fields = answer.fields.filter((field) => field.types?.some((type) => type !== 'object') ?? true); // their members are there
  return answer;
}

export const values = (path, search, options) => json(`logs/fields/${encodeURIComponent(path)}/values`, search, options);
export const stats = (search, options) => json('logs/stats', search, options);
export const patterns = (search, options) => json('logs/patterns', search, options);
export const searches = (options) => json('searches', {}, options);
export const context = (id, search, options) => json(`logs/${encodeURIComponent(id)}/context`, search, options);
export const sql = async (search) => (await request('logs/sql', search)).text();

// histogram returns {from, to, step, interval} in milliseconds, total, buckets of {start, end, count, counts, state}, and groups
// of {name, total}; counts are by group. The rest and the missing are groups that no value has. Within a budget it may end early:
// reached says how far it came, complete whether that is all. before is the answer to go on from: what it has is counted in.
export async function histogram(search, options, before = null) {
  const wanted = before ? { ...search, interval: before.interval, to: new Date(before.reached).toISOString() } : search;
  let answer;
  try {
    answer = await json('logs/histogram', wanted, options);
  } catch (error) {
    if (!(error instanceof Failure && error.status === 400 && error.message.startsWith('tz: '))) throw error;
    answer = await json('logs/histogram', { ...wanted, tz: '' }, options); // the service knows no such zone
  }
  const parts = [...(before?.parts ?? []), answer];
  const starts = new Map();
  for (const part of parts) {
    part.buckets.forEach((bucket, i) => {
      const start = Date.parse(bucket.start);
      if (!starts.has(start)) starts.set(start, { start, end: Date.parse(part.buckets[i + 1]?.start ?? part.end), count: 0, counts: new Map(), state: 'unreached' });
    });
  }
  // A value is told apart if each part tells it apart: elsewhere it may be among the rest.
  const told = parts.map((part) => new Set(part.buckets.flatMap((bucket) => Object.keys(bucket.groups ?? {}))));
  const isWhole = (name) => parts.every((part, i) => told[i].has(name) || !part.buckets.some((bucket) => bucket.other));
  const values = new Map();
  const other = { name: 'all other values', total: 0, other: true };
  const missing = { name: 'without the field', total: 0, missing: true };
  const all = { name: 'all', total: 0, other: true }; // without a field all of them are one group
  for (const part of parts) {
    for (const bucket of part.buckets) {
      const mine = starts.get(Date.parse(bucket.start));
      if (bucket.count === null) continue;
      mine.count += bucket.count;
      mine.state = bucket.partial && part === answer ? 'partial' : '';
      const add = (group, n) => {
        if (!n) return;
        group.total += n;
        mine.counts.set(group, (mine.counts.get(group) ?? 0) + n);
      };
      for (const [name, n] of Object.entries(bucket.groups ?? {})) {
        if (!isWhole(name)) add(other, n);
        else {
          if (!values.has(name)) values.set(name, { name, total: 0 });
          add(values.get(name), n);
        }
      }
      if (search.by) {
        add(other, bucket.other);
        add(missing, bucket.missing);
      } else add(all, bucket.count);
    }
  }
  const buckets = [...starts.values()].sort((a, b) => a.start - b.start);
  // A window without an end reaches ahead of now; what is empty there is not shown.
  while (!search.to && buckets.length > 1 && !buckets.at(-1).count && buckets.at(-1).start > now()) buckets.pop();
  return {
    from: buckets[0]?.start,
    to: buckets.at(-1)?.end,
    step: milliseconds(answer.interval),
    interval: answer.interval,
    total: buckets.reduce((sum, bucket) => sum + bucket.count, 0),
    buckets,
    groups: [...values.values(), other, missing, all].filter((group) => group.total),
    complete: answer.complete ?? true,
    reached: Date.parse(answer.searched_to),
    parts,
  };
}

// tail yields the events of a stream as {type, id, data} until it ends. EventSource can't send the key, hence by hand.
export async function* tail(search, lastId, options) {
  const headers = { Accept: 'text/event-stream' };
  if (lastId) headers['Last-Event-ID'] = lastId;
  const response = await request('logs/tail', search, { ...options, headers });
  let rest = '';
  let event = { type: 'message', data: [] };
  yield { type: 'open' };
  for await (const text of chunks(response.body.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (line === '') {
        if (event.data.length) yield { ...event, data: event.data.join('\n') };
        else if (event.id) yield { type: 'position', id: event.id };
        event = { type: 'message', data: [] };
      } else if (name === 'data') event.data.push(value);
      else if (name === 'event') event.type = value;
      else if (name === 'id') event.id = value;
    }
  }
}

// chunks: not every browser iterates over streams.
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.releaseLock();
  }
}

// save downloads the export. Without a key the browser does it by itself; with one, straight into a file where
// the browser offers that, else through memory.
export async function save(search, name, progress) {
  if (!key.get()) return follow(address('logs/export', { ...search, name }), name);
  const picked = window.showSaveFilePicker && await window.showSaveFilePicker({ suggestedName: name });
  const response = await request('logs/export', search);
  let bytes = 0;
  const counted = response.body.pipeThrough(new TransformStream({
    transform(chunk, controller) {
      progress(bytes += chunk.length);
      controller.enqueue(chunk);
    },
  }));
  if (picked) return counted.pipeTo(await picked.createWritable());
  const url = URL.createObjectURL(await new Response(counted).blob());
  follow(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// keep downloads a text that the page has.
export function keep(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  follow(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function follow(href, download) {
  Object.assign(document.createElement('a'), { href, download }).click();
}

// milliseconds reads an interval such as 30s or 1h.
function milliseconds(interval) {
  const size = { ms: 1, s: 1e3, m: 60e3, h: 3600e3, d: 86400e3, w: 7 * 86400e3 };
  return [...interval.matchAll(/([\d.]+)(ms|[smhdw])/g)].reduce((sum, [, n, unit]) => sum + n * size[unit], 0);
}
