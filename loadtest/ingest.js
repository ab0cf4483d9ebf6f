// ingest.js: load on Millrace, and the proof that nothing of it was lost: every run ends by counting, through the
// query service, that as many records are stored as were accepted. It fails (exit status 99) when that does not hold,
// or when any other threshold is crossed.
//
//   make loadtest SCENARIO=steady RATE=50000              builds k6, starts Millrace on private servers, stops it
//   BASE_URL=… QUERY_URL=… make loadtest SCENARIO=spike   on a Millrace that runs
//   k6 run -e SCENARIO=steady loadtest/ingest.js          with an installed k6, 1.0 or newer
//
// Rates are records a second. The settings, by environment or -e NAME=VALUE:
//
//   SCENARIO     smoke       a little of everything, in seconds (default)
//                steady      RATE for DURATION; not one request may fail, not even to be sent again
//                breakpoint  STEPS steps, each a quarter more than the one before, from RATE on: what is the most that
//                            goes in and comes out again within LAG?
//                spike       RATE, then PEAK, then RATE, a third of DURATION each
//                soak        RATE for DURATION, an hour; the API's memory is noted
//                mixed       RATE beside QUERY_RATE searches, counts and histograms a second
//   BASE_URL     the API (http://127.0.0.1:8080)
//   QUERY_URL    the query service (http://127.0.0.1:8081)
//   API_KEY      a key with the scopes write and read, where keys are asked for
//   RATE         records a second (smoke 1000, steady 10000, breakpoint 40000, spike 10000, soak 5000, mixed 10000)
//   DURATION     of the load (smoke 10s, steady 5m, breakpoint 2m, spike 90s, soak 1h, mixed 2m)
//   BATCH        records a request (500, smoke 50); 1 posts to /log
//   RECORD_BYTES bytes a record (264)
//   PEAK         records a second at the peak of spike (ten times RATE)
//   STEPS        of breakpoint (12), of a second at least
//   QUERY_RATE   queries a second of mixed (5)
//   MAX_VUS      most requests under way at once (200); what would take more is not sent, as dropped_iterations says
//   LATENCY      ms that 95 of 100 requests must be answered within (2000; none for breakpoint and spike)
//   LAG          ms from sending until a record can be read, at most, in 95 of 100 looks (5000; breakpoint 1000, where
//                it defines what a step holds; none for spike)
//   RETRY_FOR    seconds that a request is sent again for, under its key, before it counts as failed (60)
//   DRAIN        seconds after the load until everything must be stored (300)
//   SETTLE       seconds without change that end the counting where K6_API can't be reached (30)
//   K6_API       the REST API of this k6, its --address (http://127.0.0.1:6565)
//   RUN_ID       name of the run, the field "run" of its records (made up)
//   OUT          folder, which must be there, for summary.json and report.html (.)

import http from 'k6/http';
import exec from 'k6/execution';
import { check } from 'k6';
import { Trend } from 'k6/metrics';

import { account, ask, baseURL, begin, look, number, payload, seconds, send } from './client.js';
import { html, text } from './report.js';

const defaults = {
  smoke: { rate: 1000, duration: '10s', batch: 50, latency: 2000, lag: 5000 },
  steady: { rate: 10000, duration: '5m', latency: 2000, lag: 5000 },
  breakpoint: { rate: 40000, duration: '2m', lag: 1000 },
  spike: { rate: 10000, duration: '90s' },
  soak: { rate: 5000, duration: '1h', latency: 2000, lag: 5000 },
  mixed: { rate: 10000, duration: '2m', latency: 2000, lag: 5000 },
};
const scenario = __ENV.SCENARIO || 'smoke';
const d = defaults[scenario];
if (!d) throw new Error(`SCENARIO: got "${scenario}", takes ${Object.keys(defaults).join(', ')}`);

const rate = number('RATE', d.rate);
const duration = seconds('DURATION', d.duration);
const batch = Math.ceil(number('BATCH', d.batch || 500));
const peak = number('PEAK', 10 * rate);
const steps = Math.ceil(number('STEPS', 12));
const growth = 1.25; // of breakpoint's steps: a few tell the scale, and the figure is good to a quarter
const queryRate = Math.ceil(number('QUERY_RATE', 5));
const maxVUs = Math.ceil(number('MAX_VUS', 200));
const latency = __ENV.LATENCY || d.latency ? number('LATENCY', d.latency) : 0;
const lagLimit = __ENV.LAG || d.lag ? number('LAG', d.lag) : 0;
const drain = number('DRAIN', 300);
const settle = number('SETTLE', 30);
if (scenario === 'breakpoint' && steps > duration) throw new Error(`STEPS: got ${steps}, more than DURATION has seconds`);
const stepSeconds = Math.max(1, Math.floor(duration / steps));
const stepRate = (k) => Math.round(rate * growth ** k);
const mostRate = { breakpoint: stepRate(steps - 1), spike: peak }[scenario] || rate;
const memory = new Trend('api_resident_bytes');

// An iteration is a request: so many in BATCH seconds are so many records a second.
const arrivals = {
  timeUnit: `${batch}s`,
  preAllocatedVUs: Math.min(maxVUs, Math.max(10, Math.ceil(mostRate / batch / 10))),
  maxVUs,
  gracefulStop: `${number('RETRY_FOR', 60) + 60}s`, // none is cut off: what came of it would not be known
};
const constant = (extra) => ({ executor: 'constant-arrival-rate', rate, duration: `${duration}s`, exec: 'ingest', ...arrivals, ...extra });
const ramping = (stages) => ({ executor: 'ramping-arrival-rate', startRate: rate, exec: 'ingest', ...arrivals, stages });
const hold = (target, s) => [{ target, duration: '0s' }, { target, duration: `${s}s` }];
// None of these is cut off either, for one that nobody answers, which takes ask's minute, counts.
const beside = (fn, n) => ({
  executor: 'constant-arrival-rate', rate: n, duration: `${duration}s`, preAllocatedVUs: 2 * n, maxVUs: 10 * n, exec: fn, gracefulStop: '65s',
});

const third = Math.max(1, Math.floor(duration / 3));
const scenarios = { watch: beside('watch', scenario === 'soak' ? 1 : 2) };
switch (scenario) {
  case 'breakpoint':
    scenarios.ingest = ramping(Array.from({ length: steps }, (_, k) => hold(stepRate(k), stepSeconds)).flat());
    break;
  case 'spike':
    scenarios.ingest = ramping([...hold(rate, third), ...hold(peak, third), ...hold(rate, third)]);
    break;
  case 'smoke':
    scenarios.single = constant({ rate: 10, timeUnit: '1s', exec: 'single' });
    scenarios.queries = beside('query', 2);
    scenarios.ingest = constant();
    break;
  case 'mixed':
    scenarios.queries = beside('query', queryRate);
    scenarios.ingest = constant();
    break;
  default:
    scenarios.ingest = constant();
}

const thresholds = {
  records_accepted: ['count>0'],
  records_unaccounted: ['count==0'],
  requests_failed: ['rate==0'],
  checks: ['rate==1'],
};
if (latency) thresholds['http_req_duration{kind:ingest}'] = [`p(95)<${latency}`];
if (lagLimit && scenario !== 'breakpoint') thresholds.visible_lag = [`p(95)<${lagLimit}`];
if (scenario === 'steady') thresholds['http_req_failed{kind:ingest}'] = ['rate==0'];
if (scenario === 'steady' || scenario === 'soak') thresholds.dropped_iterations = [`count<=${Math.ceil(duration * rate / batch / 100)}`];
if (scenarios.queries) {
  thresholds['http_req_failed{kind:query}'] = ['rate==0'];
  thresholds['http_req_duration{kind:query}'] = [`p(95)<${2 * latency}`];
}
// A tag has figures of its own in the summary only where a threshold names it: these hold always.
const parts = { breakpoint: Array.from({ length: steps }, (_, k) => String(k)), spike: ['before', 'peak', 'after'] }[scenario] || [];
for (const part of parts) {
  thresholds[`records_accepted{part:${part}}`] = ['count>=0'];
  thresholds[`requests_failed{part:${part}}`] = ['rate>=0'];
  thresholds[`http_req_duration{kind:ingest,part:${part}}`] = ['max>=0'];
  thresholds[`visible_lag{part:${part}}`] = ['max>=0'];
}

export const options = {
  scenarios,
  thresholds,
  setupTimeout: '2m',
  teardownTimeout: `${drain + 120}s`,
  summaryTrendStats: ['med', 'p(90)', 'p(95)', 'p(99)', 'max', 'count'],
  noVUConnectionReuse: false,
  userAgent: 'millrace-loadtest',
};

export function setup() {
  return begin();
}

// part is the step or phase that the load is in.
function part() {
  const s = (Date.now() - exec.scenario.startTime) / 1000;
  switch (scenario) {
    case 'breakpoint':
      return { part: String(Math.min(steps - 1, Math.floor(s / stepSeconds))) };
    case 'spike':
      return { part: parts[Math.min(2, Math.floor(s / third))] };
  }
  return {};
}

const bodies = {}; // of this VU, by their number of records

function post(data, n) {
  bodies[n] = bodies[n] || payload(data.run, n);
  send(bodies[n], n, part());
}

export function ingest(data) {
  post(data, batch);
}

export function single(data) {
  post(data, 1);
}

export function watch(data) {
  look(data, part());
  if (scenario === 'soak' && exec.scenario.iterationInTest % 10 === 0) {
    const answer = http.get(`${baseURL}/metrics`, { tags: { kind: 'metrics' } });
    const m = /^process_resident_memory_bytes (\S+)$/m.exec(answer.body);
    if (m) memory.add(Number(m[1]));
  }
}

// query asks what a person and a dashboard would.
export function query() {
  const paths = [
    '/logs?limit=100&q=level:error',
    '/logs?limit=20&from=now-1m&q=service:checkout+http.status:>=500',
    '/logs/count?from=now-1m&q=level:error',
    '/logs/histogram?from=now-1m&by=level',
    '/logs/fields?from=now-1m',
  ];
  check(ask(paths[exec.scenario.iterationInTest % paths.length], { kind: 'query' }), { 'a query is answered': (a) => a !== null });
}

export function teardown(data) {
  account(data, mostRate, drain, settle);
}

export function handleSummary(data) {
  const partSeconds = { breakpoint: stepSeconds, spike: third }[scenario];
  const offered = (k) => (scenario === 'breakpoint' ? stepRate(k) : k === 1 ? peak : rate);
  const value = (name, field) => (data.metrics[name] && data.metrics[name].values[field]) || 0;
  const rows = parts.map((name, k) => {
    const row = {
      part: name,
      offered: offered(k),
      accepted: value(`records_accepted{part:${name}}`, 'count') / partSeconds,
      failed: value(`requests_failed{part:${name}}`, 'rate'),
      latency: value(`http_req_duration{kind:ingest,part:${name}}`, 'p(95)'),
      looks: value(`visible_lag{part:${name}}`, 'count'),
      lag: value(`visible_lag{part:${name}}`, 'p(90)'),
    };
    if (scenario !== 'breakpoint') return row;
    row.holds = row.accepted >= 0.97 * row.offered - (2 * batch) / partSeconds && // the first and the last come when they come
      row.failed === 0 && row.looks > 0 && row.lag <= lagLimit;
    return row;
  });
  const report = {
    scenario,
    settings: { rate, duration, batch, peak: scenario === 'spike' ? peak : undefined, latency, lag: lagLimit, url: baseURL },
    accepted: value('records_accepted', 'count'),
    stored: value('records_stored', 'count'),
    parts: rows,
  };
  if (scenario === 'breakpoint') {
    const broken = rows.findIndex((r) => !r.holds);
    const held = broken < 0 ? rows : rows.slice(0, broken);
    report.breakpoint = { records_per_second: held.length ? held[held.length - 1].offered : 0, reached: broken >= 0 };
  }
  const out = __ENV.OUT || '.';
  return {
    stdout: text(report, data),
    [`${out}/summary.json`]: JSON.stringify({ ...report, metrics: data.metrics }, null, 1),
    [`${out}/report.html`]: html(report, data),
  };
}
