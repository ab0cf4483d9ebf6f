// The page's wiring: the address (state.js) says what is wanted, the service (api.js) answers, the other modules
// show it. Whatever the reader does becomes a new address, and refresh() makes the page follow it.
import { $, h, copy, toast } from './dom.js';
import * as api from './api.js';
import { chart, count } from './chart.js';
import { fieldsPanel } from './fields.js';
import * as language from './language.js';
import { levelFields } from './levels.js';
import { list } from './list.js';
import { follower, most } from './live.js';
import { rangePicker, wider } from './range.js';
import { searchBox } from './search.js';
import { link, read } from './state.js';
import { duration, iso, isRelative, resolve, zone, zoneName } from './time.js';

const pageSize = 100;
const byItself = 2000; // rows that scrolling loads; more take a click
const chartEvery = 10_000; // ms between two looks at the histogram while live
const nothing = '-'; // the histogram by no field

let state = read();
let abort = new AbortController();
let next = null; // the cursor of the page after the last
let loading = false;
let chartTimer = null;
let fieldsOf = ''; // the window whose fields are known
let newest = 0; // of the rows that were loaded, in ms

const rows = list({ onfilter: filter, onaround: around, onopen: opened, linkTo: (log) => href({ ...pinned(), id: log.id }) });
const histogram = chart({
  onzoom: (from, to) => go({ from: iso(Math.floor(from)), to: iso(Math.ceil(to)), live: '' }),
  onpick: (group, exclude) => filter((exclude ? '-' : '') + conditionOf(group)),
  ispickable: (group) => !group.other && !isJSON(group.name) && language.fits(conditionOf(group)),
});
const range = rangePicker({ onchange: (from, to) => go({ from, to, live: to === 'now' ? state.live : '' }) });
const fields = fieldsPanel({ onfilter: filter, onload: fieldsLoaded });
const search = searchBox({ onsubmit: (q) => go({ q }), fieldNames: fields.names, valuesOf: fields.completions });
const tail = follower({
  onlogs(logs) {
    rows.prepend(logs, most);
    notice();
  },
  onchange: showLive,
  onfail: failed,
});

const nearEnd = new IntersectionObserver((entries) => {
  if (entries.at(-1).isIntersecting && rows.size() < byItself) loadMore();
}, { rootMargin: '600px' });

// go changes what is asked for, as a step that the back button undoes.
function go(change) {
  const wanted = { ...state, id: '', ...change };
  if (link(wanted) !== link(state)) history.pushState(null, '', link(wanted));
  state = wanted;
  refresh();
}

const href = (wanted) => new URL(link(wanted), location.href).href;

// pinned is the state with its times fixed: others see what is seen here, whenever they look.
function pinned() {
  const seen = histogram.range();
  const fix = (text, edge) => (isRelative(text) ? iso(Math.round(edge ?? resolve(text))) : text);
  return { ...state, live: '', from: fix(state.from, seen?.from), to: fix(state.to, Math.max(resolve(state.to), newest + 1)) };
}

function filter(condition) {
  go({ q: language.also(state.q, condition) });
}

function around(ms, id) {
  go({ q: '', from: iso(ms - 60e3), to: iso(ms + 60e3), live: '', id });
}

function opened(id) {
  if (id && state.live && !tail.figures.paused) pause(true); // what is read must not move away
  state.id = id;
  history.replaceState(null, '', link(state));
}

// conditionOf is the search for what the histogram counts in a group, where null is missing, and "null" a text.
function conditionOf(group) {
  if (group.missing) return `(-${by()}:* OR (${by()}:null -${by()}:"null"))`;
  return `${by()}:${group.name === 'null' ? '"null"' : language.either(group.name)}`;
}

// isJSON reports whether a text is an object's or an array's, which no search finds as a whole.
function isJSON(text) {
  if (!/^[[{]/.test(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

const by = () => state.by || levelFields.find(fields.has) || 'level';

// times is the window. One that ends now has no end for the service: what is dated a little ahead by another clock is in it.
const times = () => ({ from: state.from, to: state.to === 'now' ? '' : state.to });

// refresh shows the state anew. Answers to what was asked before are dropped.
function refresh() {
  abort.abort();
  abort = new AbortController();
  const { signal } = abort;
  tail.stop();
  clearInterval(chartTimer);
  search.show(state.q);
  range.show(state.from, state.to);
  document.title = state.q ? `${state.q} · Millrace` : 'Millrace';
  $('order').lastChild.textContent = state.order === 'asc' ? 'Oldest first' : 'Newest first';
  $('order').classList.toggle('up', state.order === 'asc');
  $('order').disabled = state.live !== '';
  $('live').setAttribute('aria-pressed', state.live !== '');
  $('key-forget').hidden = !api.key.get();
  $('q-error').hidden = true;
  const [from, to] = [resolve(state.from), resolve(state.to)];
  $('rows').classList.toggle('dated', new Date(from).toDateString() !== new Date(to).toDateString());
  if (state.live) {
    tail.start(state.q);
    chartTimer = setInterval(() => {
      if (tail.figures.paused || document.hidden) return;
      loadChart(signal);
      if (!fields.names().length) reloadFields();
    }, chartEvery);
  }
  showLive();
  loadFields();
  loadChart(signal);
  loadFirst(signal);
}

function loadFields() {
  if (fieldsOf === link(times())) return;
  fieldsOf = link(times());
  fields.load(times()).catch((error) => {
    fieldsOf = '';
    if (error.status === 401) failed(error);
  });
}

function reloadFields() {
  fieldsOf = '';
  loadFields();
}

function fieldsLoaded() {
  const names = fields.names();
  const chosen = by();
  const select = $('by');
  const option = (value, label = value) => h('option', { value }, label);
  select.replaceChildren(option(nothing, 'nothing'), ...names.slice(0, 300).map(({ text }) => option(text)));
  if (chosen !== nothing && !fields.has(chosen)) select.append(option(chosen));
  select.value = chosen;
  if (select.dataset.shown !== chosen) loadChart(abort.signal);
}

async function loadChart(signal) {
  const field = by();
  const select = $('by');
  if (![...select.options].some((option) => option.value === field)) select.append(h('option', { value: field }, field));
  select.value = field;
  select.dataset.shown = field;
  $('overview').classList.add('loading');
  try {
    const answer = await api.histogram({ ...times(), q: state.q, by: field === nothing ? '' : field, tz: zoneName() }, { signal });
    if (signal.aborted || by() !== field) return;
    histogram.show(answer, field === nothing ? '' : field, answer.groups);
    $('total').textContent = count(answer.total);
    $('total-unit').textContent = answer.total === 1 ? 'log' : 'logs';
    $('bucket').textContent = answer.buckets.length ? `${duration(answer.step)} a bar` : '';
  } catch (error) {
    if (signal.aborted) return;
    $('total').textContent = '–';
    $('bucket').textContent = '';
    histogram.fail(error.status >= 400 && error.status < 500 ? '' : error.message); // the rows' place tells it
    if (error.status === 401) failed(error);
  } finally {
    if (!signal.aborted) $('overview').classList.remove('loading');
  }
}

async function loadFirst(signal) {
  next = null;
  $('body').classList.add('loading');
  $('end-note').hidden = $('more').hidden = true;
  const page = await load(signal, '');
  if (!page) return;
  rows.clear();
  newest = 0;
  $('body').classList.remove('failed');
  showPage(page);
  const { id } = state;
  if (id && !rows.has(id)) {
    const log = await api.one(id, { signal }).catch(() => null);
    if (signal.aborted || !log) return;
    rows.prepend([log], Infinity);
    $('rows').firstChild.classList.add('apart');
  }
  if (id) rows.open(id);
}

async function loadMore() {
  if (loading || !next) return;
  const page = await load(abort.signal, next);
  if (page) showPage(page);
}

// load reads a page; it returns nothing when it failed or is no longer wanted.
async function load(signal, cursor) {
  loading = true;
  $('busy').hidden = false;
  try {
    const page = await api.logs({
      ...times(), q: state.q, limit: pageSize, order: state.live ? 'desc' : state.order, cursor,
    }, { signal });
    return signal.aborted ? undefined : page;
  } catch (error) {
    if (signal.aborted) return;
    if (cursor && error.status !== 401) toast(error.message); // what is there stays, and the button to try again
    else failed(error);
  } finally {
    if (!signal.aborted) {
      loading = false;
      $('busy').hidden = true;
      $('body').classList.remove('loading');
    }
  }
}

function showPage(page) {
  rows.append(page.logs);
  newest = Math.max(newest, ...page.logs.map((log) => Date.parse(log.time)));
  next = state.live ? null : page.next;
  $('more').hidden = !next;
  $('end-note').hidden = !!next || !rows.size() || state.live !== '';
  $('end-note').textContent = 'That is all of this range.';
  notice();
  nearEnd.unobserve($('end')); // to be told again also where the end never left
  nearEnd.observe($('end'));
}

// notice says what to do when there is nothing to see.
function notice() {
  const box = $('notice');
  box.hidden = rows.size() > 0;
  if (!box.hidden) box.replaceChildren(...(state.live ? waitingForLogs() : noLogs()));
}

const button = (label, onclick) => h('button', { type: 'button', onclick }, label);

const waitingForLogs = () => [h('h2', {}, 'Waiting for logs'), h('p', {}, 'Those that match appear here as they are stored.')];

function noLogs() {
  const bare = !state.q && !fields.names().length;
  return [
    h('h2', {}, 'No logs here'),
    h('p', {}, state.q ? 'Nothing in this range matches the search.' : 'Nothing was stored in this range.'),
    h('p', {}, [['now-24h', 'Last 24 hours'], ['now-7d', 'Last 7 days'], ['now-30d', 'Last 30 days']]
      .filter(([from]) => resolve(from) < resolve(state.from)).map(([from, label]) => button(label, () => go({ from, to: 'now' }))),
    state.q && button('Clear the search', () => go({ q: '' }))),
    bare && h('pre', {}, `curl -d '{"level":"info","message":"hello"}' http://localhost:8080/log`),
  ].filter(Boolean);
}

// failed tells of an answer that is an error, where it belongs: a key, a place in the query, or anything else.
function failed(error) {
  if (error.status === 401 || (error.status === 403 && api.key.get())) return askKey(error);
  tail.stop();
  showLive();
  const place = /^q: /.test(error.message) && /\bat (\d+)\b/.exec(error.message);
  if (/^q: /.test(error.message)) {
    $('q-error').textContent = error.message.slice('q: '.length);
    $('q-error').hidden = false;
    if (place && search.value() === state.q) search.mark(Number(place[1]));
  }
  rows.clear();
  $('body').classList.add('failed');
  $('more').hidden = $('end-note').hidden = true;
  $('notice').hidden = false;
  $('notice').replaceChildren(...(error.status === 400
    ? [h('h2', {}, 'This search can’t be read'), $('q-error').hidden && h('p', {}, error.message)].filter(Boolean)
    : [h('h2', {}, error.status === 504 ? 'That took too long' : 'That did not work'), h('p', {}, error.message),
      button('Try again', refresh)]));
}

function askKey(error) {
  const given = api.key.get();
  tail.stop();
  $('key-error').hidden = !given;
  $('key-error').textContent = error.status === 403 ? error.message : 'This key is not taken.';
  if (!$('key-box').open) {
    $('key').value = '';
    $('key-box').showModal();
  }
}

$('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  api.key.set($('key').value.trim(), $('key-keep').checked);
  $('key-box').close();
  fieldsOf = '';
  refresh();
});
$('key-forget').addEventListener('click', () => {
  api.key.forget();
  location.reload();
});

// Live.

function toggleLive() {
  if (state.live) go({ live: '' });
  else go({ live: '1', order: 'desc', ...(state.to === 'now' ? {} : { from: 'now-15m', to: 'now' }) });
}

function pause(on) {
  if (!tail.running()) return;
  tail.pause(on);
  if (!on) scrollTo({ top: 0 });
}

function showLive() {
  const { connected, paused, missed, gap, waiting, rate } = tail.figures;
  const on = tail.running();
  $('live-bar').hidden = !on;
  document.body.classList.toggle('live', on && connected && !paused);
  if (!on) return;
  $('live-state').textContent = [
    !connected ? 'Connecting…' : paused ? `Paused, ${count(waiting)} new` : rate ? `${count(Math.round(rate * 10) / 10)} a second` : 'Listening',
    missed ? `${count(missed)} missed` : gap && 'some missed',
  ].filter(Boolean).join(' · ');
  $('pause').textContent = paused ? 'Go on' : 'Pause';
}

$('live').addEventListener('click', toggleLive);
$('pause').addEventListener('click', () => pause(!tail.figures.paused));
addEventListener('scroll', () => {
  if (tail.running() && !tail.figures.paused && scrollY > 200) pause(true);
}, { passive: true });

// The other controls.

const reload = () => {
  reloadFields();
  refresh();
};
const turn = () => state.live || go({ order: state.order === 'asc' ? 'desc' : 'asc' });
const zoomOut = () => {
  const [from, to] = wider(state.from, state.to, histogram.range());
  go({ from, to });
};

function toggleTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === 'dark'
    || (!document.documentElement.dataset.theme && matchMedia('(prefers-color-scheme: dark)').matches);
  document.documentElement.dataset.theme = dark ? 'light' : 'dark';
  localStorage.setItem('millrace.theme', document.documentElement.dataset.theme);
}

const narrow = matchMedia('(max-width: 1000px)');

function showFields(on) {
  $('body').classList.toggle('with-fields', on);
  $('fields-toggle').setAttribute('aria-expanded', on);
}

function toggleFields() {
  const on = !$('body').classList.contains('with-fields');
  showFields(on);
  if (!narrow.matches) localStorage.setItem('millrace.fields', on ? '' : 'hidden');
}

async function save() {
  const { q, from, to } = pinned();
  try {
    await api.save({ q, from, to: state.to === 'now' ? '' : to }, `logs-${from.slice(0, 19).replaceAll(':', '')}.ndjson`,
      (bytes) => toast(`Exporting: ${count(Math.round(bytes / 1e5) / 10)} MB`));
  } catch (error) {
    if (error.name !== 'AbortError') toast(`The export failed: ${error.message}`);
  }
}

$('reload').addEventListener('click', reload);
$('order').addEventListener('click', turn);
$('zoom-out').addEventListener('click', zoomOut);
$('theme').addEventListener('click', toggleTheme);
$('fields-toggle').addEventListener('click', toggleFields);
$('save').addEventListener('click', save);
$('share').addEventListener('click', () => copy(href(pinned()), 'Link'));
$('help').addEventListener('click', () => $('help-box').showModal());
$('more').addEventListener('click', loadMore);
$('by').addEventListener('change', () => go({ by: $('by').value }));
$('language-box').addEventListener('toggle', (event) => {
  if (event.newState !== 'open') return;
  const at = $('search').getBoundingClientRect();
  $('language-box').style.top = `${at.bottom + 6}px`;
  $('language-box').style.left = `${Math.max(6, at.right - $('language-box').offsetWidth)}px`;
});
nearEnd.observe($('end'));

const keys = {
  '/': search.focus, j: () => rows.move(1), k: () => rows.move(-1), l: toggleLive, r: reload, z: zoomOut, o: turn,
  f: toggleFields, t: toggleTheme, p: () => pause(!tail.figures.paused), '?': () => $('help-box').showModal(),
  Escape: () => rows.close(),
};
addEventListener('keydown', (event) => {
  const typing = event.target.matches('input, select, textarea');
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open], :popover-open')) return;
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

addEventListener('popstate', () => {
  state = read();
  refresh();
});

$('zone').textContent = zone();
showFields(!narrow.matches && localStorage.getItem('millrace.fields') !== 'hidden');
refresh();
