// client.js: how the scenarios talk to Millrace: sending under an Idempotency-Key until there is an answer, and
// asking what is stored. The settings it reads are described in ingest.js.

import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Gauge, Rate, Trend } from 'k6/metrics';

export const baseURL = (__ENV.BASE_URL || 'http://127.0.0.1:8080').replace(/\/+$/, '');
export const queryURL = (__ENV.QUERY_URL || 'http://127.0.0.1:8081').replace(/\/+$/, '');

const recordBytes = number('RECORD_BYTES', 264);
const retryFor = number('RETRY_FOR', 60) * 1000;
const k6URL = (__ENV.K6_API || 'http://127.0.0.1:6565').replace(/\/+$/, '');
const authorization = __ENV.API_KEY ? { Authorization: `Bearer ${__ENV.API_KEY}` } : {};

const accepted = new Counter('records_accepted');
const stored = new Counter('records_stored');
// Accepted less stored. VUs add, teardown takes away: a threshold looks at one metric alone.
const unaccounted = new Counter('records_unaccounted');
const failed = new Rate('requests_failed');
const retries = new Counter('request_retries');
const lag = new Trend('visible_lag', true);
const mark = new Gauge('run_mark');

// number is a setting of the environment that must be a number above 0.
export function number(name, otherwise) {
  const text = __ENV[name] || otherwise;
  const n = Number(text);
  if (!(n > 0)) throw new Error(`${name}: got "${text}", takes a number above 0`);
  return n;
}

// seconds is a setting such as 90s, 5m or 1h30m.
export function seconds(name, otherwise) {
  const text = __ENV[name] || otherwise;
  const m = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$/.exec(text);
  const n = m ? Number(m[1] || 0) * 3600 + Number(m[2] || 0) * 60 + Number(m[3] || 0) : 0;
  if (!(n > 0)) throw new Error(`${name}: got "${text}", takes a duration such as 90s, 5m or 1h30m`);
  return n;
}

// uuidv7 is an id of this moment, as Idempotency-Key wants it.
export function uuidv7() {
  const time = Date.now().toString(16).padStart(12, '0');
  const rest = Array.from(crypto.getRandomValues(new Uint8Array(10)), (b) => b.toString(16).padStart(2, '0')).join('');
  const variant = '89ab'[parseInt(rest[3], 16) & 3];
  return `${time.slice(0, 8)}-${time.slice(8)}-7${rest.slice(0, 3)}-${variant}${rest.slice(4, 7)}-${rest.slice(7, 19)}`;
}

// payload makes n records as services log them, of RECORD_BYTES each, that name the run. They go out again and
// again: the key of a request, not what it says, is what makes its records others.
export function payload(run, n) {
  const pick = (...of) => of[Math.floor(Math.random() * of.length)];
  const id = () => Math.random().toString(16).slice(2, 10).padEnd(8, '0');
  const words = 'request served from the upstream pool after one retry with a warm cache and nothing else to say ';
  const lines = [];
  for (let i = 0; i < n; i++) {
    const head = `{"time":"${new Date().toISOString()}","run":"${run}","level":"${pick('info', 'info', 'info', 'warn', 'error')}",` +
      `"service":"${pick('checkout', 'cart', 'search', 'auth')}","trace_id":"${id()}${id()}","http":{"method":"${pick('GET', 'POST')}",` +
      `"path":"/api/v1/${pick('orders', 'users', 'items')}/${Math.floor(Math.random() * 1e6)}","status":${pick(200, 200, 201, 404, 500)}},` +
      `"duration_ms":${(Math.random() * 100).toFixed(3)},"message":"`;
    const room = Math.max(1, recordBytes - head.length - 2);
    lines.push(`${head}${words.repeat(Math.ceil(room / words.length)).slice(0, room)}"}`);
  }
  return lines.join('\n');
}

// send posts n records until they are accepted or refused, for at most RETRY_FOR. What may be tried again (no answer,
// 408, 429, 5xx) is tried again under the same key, after Retry-After, so nothing is stored twice.
export function send(body, n, tags) {
  const url = n === 1 ? `${baseURL}/log` : `${baseURL}/log/batch`;
  const params = {
    headers: { ...authorization, 'Content-Type': 'application/x-ndjson', 'Idempotency-Key': uuidv7() },
    tags: { ...tags, kind: 'ingest', name: n === 1 ? 'POST /log' : 'POST /log/batch' },
    timeout: '30s',
  };
  const until = Date.now() + retryFor;
  for (let tries = 1; ; tries++) {
    const answer = http.post(url, body, params);
    if (answer.status === 202) {
      const all = check(answer, { 'all of a request is accepted': (r) => n === 1 || r.json('accepted') === n });
      accepted.add(n, tags);
      unaccounted.add(n);
      failed.add(!all, tags);
      return true;
    }
    const pause = retryAfter(answer, tries);
    if (!(answer.status === 0 || answer.status === 408 || answer.status === 429 || answer.status >= 500) || Date.now() + pause * 1000 > until) {
      console.error(`${params.tags.name}: given up after ${tries} tries: ${answer.status} ${answer.error} ${answer.body}`);
      failed.add(true, tags);
      return false;
    }
    retries.add(1, { ...tags, status: String(answer.status) });
    sleep(pause);
  }
}

// retryAfter is how many seconds to wait: what the server asks for, else longer from try to try; with something on
// top, so that those who were refused together do not all come back together.
function retryAfter(answer, tries) {
  const asked = Number(answer.headers['Retry-After']);
  return (asked > 0 ? asked : Math.min(5, 0.1 * 2 ** tries)) * (1 + Math.random() / 4);
}

// ask gets a path of the query service and returns the JSON, or null where the answer is not 200.
export function ask(path, tags) {
  const answer = http.get(queryURL + path, { headers: authorization, tags: { ...tags, name: `GET ${path.split('?')[0]}` }, timeout: '60s' });
  const good = answer.status === 200;
  if (!good) console.warn(`${path}: ${answer.status} ${answer.error} ${answer.body}`);
  return good ? answer.json() : null;
}

// look notes how old the youngest record of the run is that can be read: the time from sending to there, as long as
// records are sent. Where none can be read, because none is there or nobody answers, it is the age of the run.
export function look(data, tags) {
  const answer = ask(`/logs?limit=1&from=${data.begin}&q=run:${data.run}`, { kind: 'look' });
  lag.add(Date.now() - (answer && answer.logs.length ? Date.parse(answer.logs[0].inserted_at) : data.begin), tags);
}

// begin waits until both services are ready and gives the run its name.
export function begin() {
  for (const url of [baseURL, queryURL]) {
    for (let tries = 0; http.get(`${url}/ready`, { tags: { kind: 'ready' } }).status !== 200; tries++) {
      if (tries === 30) throw new Error(`${url} is not ready`);
      sleep(1);
    }
  }
  const run = __ENV.RUN_ID || `run${uuidv7().replace(/-/g, '').slice(-16)}`;
  const number = Math.floor(Math.random() * 2 ** 31);
  mark.add(number);
  return { run, begin: Date.now() - 1, mark: number };
}

// account counts what is stored of the run, in slices of at most about a million records, until it is what was accepted,
// in two counts one after the other, or for at most DRAIN. What was accepted is known from k6's own REST API; where that
// can't be reached, counting ends when nothing has changed for SETTLE. The threshold on records_unaccounted judges.
export function account(data, recordsPerSecond, drain, settle) {
  const slice = Math.min(60000, Math.max(1000, Math.floor(1e9 / recordsPerSecond)));
  const end = Date.now() + 1;
  const deadline = Date.now() + drain * 1000;
  let last = -1;
  let since = Date.now();
  for (;;) {
    const start = Date.now();
    const sum = count(data, end, slice, deadline);
    const want = acceptedSoFar(data);
    if (sum !== last) since = Date.now();
    const same = sum === last && (sum === want || (want === null && Date.now() - since >= settle * 1000));
    if (same || Date.now() > deadline) {
      stored.add(sum);
      unaccounted.add(-sum);
      console.log(`run ${data.run}: ${sum} records stored, ${want === null ? 'an unknown number' : want} accepted`);
      return;
    }
    last = sum;
    sleep(Math.min(10, Math.max(1, (Date.now() - start) / 1000)));
  }
}

function count(data, end, slice, deadline) {
  let sum = 0;
  for (let from = data.begin; from < end; from += slice) {
    const path = `/logs/count?from=${from}&to=${Math.min(end, from + slice)}&q=run:${data.run}`;
    let answer = ask(path, { kind: 'count' });
    while (!answer) {
      if (Date.now() > deadline) throw new Error(`the query service can't count: ${path}`);
      sleep(2);
      answer = ask(path, { kind: 'count' });
    }
    sum += answer.count;
  }
  return sum;
}

// acceptedSoFar asks the k6 that this runs in; null where another one, or none, answers.
function acceptedSoFar(data) {
  const value = (name, field) => {
    const answer = http.get(`${k6URL}/v1/metrics/${name}`, { tags: { kind: 'k6' } });
    return answer.status === 200 ? answer.json(`data.attributes.sample.${field}`) : null;
  };
  return value('run_mark', 'value') === data.mark ? value('records_accepted', 'count') : null;
}
