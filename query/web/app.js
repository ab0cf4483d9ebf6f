// The page's wiring: the address (state.js) says what is wanted, the service (api.js) answers, the other modules
// show it. Whatever the reader does becomes a new address, and refresh() makes the page follow it.
import { $, h, copy, toast } from './dom.js';
import { alertsBox } from './alerts.js';
import * as api from './api.js';
import { chart, count } from './chart.js';
import { fieldsPanel } from './fields.js';
import * as language from './language.js';
import { levelFields } from './levels.js';
import { list } from './list.js';
import { follower, most } from './live.js';
import * as past from './past.js';
import { patternsPanel } from './patterns.js';
import { progressBar } from './progress.js';
import { rangePicker, wider } from './range.js';
import { saveBox } from './save.js';
import { searchBox } from './search.js';
import { link, read, split } from './state.js';
import { tablePanel } from './table.js';
import { duration, iso, isDated, isRelative, local, offsetText, resolve, useUTC, zone, zoneName } from './time.js';
import { viewBox } from './view.js';

const pageSize = 100;
const byItself = 2000; // rows that scrolling loads; more take a click
const chartEvery = 10_000; // ms between two looks at the histogram while live
const nothing = '-'; // the histogram by no field
const longestPause = 30; // s between two tries after the network was lost

// Changes of these alone ask the service for nothing.
const viewOnly = ['cols', 'widths', 'wrap', 'ansi'];
// Changes of these alone are the business of the tab that shows them.
const ofTab = ['tab', 'calc', 'group', 'every', 'sort', 'vs'];

let state = read();
let abort = new AbortController(); // of all that the search asks for
let tabAbort = new AbortController(); // of what the tab asks for
let seen = { at: 0, from: NaN, to: NaN }; // the window of the search, in ms, and when it was asked
let marks = null; // finds in texts what the search looks for
let next = null; // the cursor of the page after the last
let loading = false;
let chartTimer = null;
let retryTimer = null;
let retryPause = 2; // s
let newest = 0; // of the rows that were loaded, in ms

const view = () => ({
  cols: split(state.cols), widths: columns.widths(), marks, ansi: state.ansi !== 'off', wrap: state.wrap !== '', clock: state.clock || 'time', order: state.live ? 'desc' : state.order, q: state.q,
});
const rows = list({ onfilter: filter, oncontext: around, onopen: opened, view, linkTo: (log) => href({ ...pinned(), tab: '', id: log.id, around: 'all' }) });
const histogram = chart({
  onzoom: (from, to) => go({ from: iso(Math.floor(from)), to: iso(Math.ceil(to)), live: '' }),
  onpick: (group, exclude) => narrow(conditionOf(group), exclude, state.tab),
  ispickable: (group) => !group.other && !isJSON(group.name) && language.fits(conditionOf(group)),
});
const progress = progressBar();
const range = rangePicker({
  onchange: (from, to) => go({ from, to, live: to === 'now' ? state.live : '' }),
  onzone: (utc) => go({ zone: utc ? 'utc' : '' }), onclock: (arrival) => go({ clock: arrival ? 'inserted_at' : '', live: '' }),
});
const fields = fieldsPanel({
  onfilter: filter, onrange: (conditions) => ask(conditions.reduce(language.also, state.q)), onload: fieldsLoaded, onremove: (condition) => go({ q: language.without(state.q, condition) }),
  oncolumn: (path) => columns.turn(path), ontable: (change) => go({ tab: 'table', live: '', sort: '', ...change }), columns: () => split(state.cols),
});
const columns = viewBox({
  onchange: go, fieldNames: fields.names, widthOf: rows.widthOf,
  onresize(widths, isDone) { // no step for the back button
    state.widths = widths;
    rows.layout();
    if (isDone) history.replaceState(null, '', link(state));
  },
});
const search = searchBox({ onsubmit: (q) => go({ q }), fieldNames: fields.names, valuesOf: fields.completions });
const table = tablePanel({ onchange: go, onnarrow: (condition, exclude) => narrow(condition, exclude, exclude ? 'table' : ''), fieldNames: fields.names });
const patterns = patternsPanel({ onchange: go, onnarrow: (condition, exclude) => narrow(condition, exclude, exclude ? 'patterns' : '') });
saveBox({
  seen: () => {
    const fixed = pinned();
    return {
      tab: state.tab, columns: split(state.cols), total: `${$('total').textContent} ${$('total-unit').textContent}`,
      search: { from: fixed.from, to: fixed.to, clock: state.clock, q: state.q, order: state.live ? 'desc' : state.order },
      window: { from: resolve(fixed.from), to: resolve(fixed.to, seen.at, true) },
      table: state.tab === 'table' ? table.csv : patterns.csv,
    };
  },
});
const showAlerts = alertsBox({
  onopen: (change) => go({ ...change, live: '', tab: '', clock: '' }),
  onfail: failed,
});
const tail = follower({
  onlogs(logs) {
    rows.prepend(logs, most);
    notice();
  },
  onchange: showLive,
  onjoin: () => loadTab(),
  onfail: failed,
});

const nearEnd = new IntersectionObserver((entries) => {
  if (entries.at(-1).isIntersecting && rows.size() < byItself) loadMore();
}, { rootMargin: '600px' });

// go changes what is asked for, as a step that the back button undoes.
function go(change) {
  const changed = Object.keys(change).filter((name) => change[name] !== state[name]);
  const isOwn = changed.some((name) => !viewOnly.includes(name) && !ofTab.includes(name)) || !changed.length;
  const wanted = { ...state, ...(isOwn ? { id: '', around: '' } : {}), ...change };
  if (link(wanted) !== link(state)) history.pushState(null, '', link(wanted));
  state = wanted;
  if (isOwn) {
    if (changed.length) scrollTo({ top: 0 });
    refresh();
  } else {
    showControls();
    if (changed.some((name) => viewOnly.includes(name))) {
      rows.redraw();
      fields.redraw();
    }
    if (changed.some((name) => ofTab.includes(name))) loadTab();
  }
}

const href = (wanted) => new URL(link(wanted), location.href).href;

// pinned is the state with its times fixed: others see what is seen here, whenever they look, and an export has it.
function pinned() {
  const end = Math.max(seen.at, newest + 1, histogram.end(seen.at));
  return {
    ...state, live: '', from: isRelative(state.from) ? iso(Math.ceil(seen.from)) : state.from,
    to: state.to === 'now' ? iso(end) : isRelative(state.to) ? iso(Math.ceil(seen.to)) : state.to,
  };
}

// ask changes the query, and what else is to change with it, if the service takes so long a query.
function ask(q, change = {}) {
  if (!language.fits(q)) return toast('The search would be longer than the service takes, 4096 bytes.');
  go({ q, ...change });
}

// filter changes what is asked of one field: how is add, toggle, exclude, also or only.
function filter(how, field, literal) {
  const condition = `${field}:${literal}`;
  const q = how === 'only' ? condition : how === 'also' ? language.also(state.q, condition) : language.withValue(state.q, field, literal, how);
  ask(q);
}

// narrow asks for a condition in the place of others on its field, or for all but it.
function narrow(condition, exclude, tab) {
  const one = language.test(condition);
  const rest = one && !exclude ? language.conditions(state.q).filter((part) => {
    const other = language.test(part);
    return !other || other.negative || other.field !== one.field;
  }).join(' ') : state.q;
  const q = exclude && one ? one.values.reduce((q, value) => language.withValue(q, one.field, value, 'exclude'), rest) : language.also(rest, (exclude ? '-' : '') + condition);
  ask(q, { tab });
}

// around unfolds the records next to one, or folds them up.
function around(kind, item) {
  if (!item.detail) rows.open(item.log.id, false);
  rows.surround(item, kind);
  state.id = item.log.id;
  state.around = kind;
  history.replaceState(null, '', link(state));
  if (!kind) item.line.focus();
}

function opened(id) {
  if (id && state.live && !tail.figures.paused) pause(true); // what is read must not move away
  state.id = id;
  state.around = '';
  history.replaceState(null, '', link(state));
}

// conditionOf is the search for what the histogram counts in a group, where null is missing, and "null" a text.
function conditionOf(group) {
  if (group.missing) return `(-${by()}:* OR (${by()}:null -${by()}:"null"))`;
  return language.anyOf(by(), group.names.map((name) => (name === 'null' ? '"null"' : language.either(name))));
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

// fix takes down what now means for the search: rows, bars, figures and facets are all of that window.
function fix() {
  const at = api.now();
  seen = { at, from: resolve(state.from, at), to: resolve(state.to, at, true) };
}

// wanted is what the service is asked. A window that ends now has no end for it: what is dated a little ahead by another clock is in it.
const wanted = () => ({
  from: isRelative(state.from) && !Number.isNaN(seen.from) ? iso(seen.from) : state.from,
  to: state.to === 'now' ? '' : isRelative(state.to) && !Number.isNaN(seen.to) ? iso(seen.to) : state.to,
  clock: state.clock, q: state.q,
});

// showControls makes the controls say what the state is.
function showControls() {
  useUTC(state.zone === 'utc');
  range.show(state.from, state.to, state.zone === 'utc', state.clock !== '');
  columns.show(state);
  document.title = state.q ? `${state.q} · Millrace` : 'Millrace';
  $('order').lastChild.textContent = state.order === 'asc' ? 'Oldest first' : 'Newest first';
  $('order').classList.toggle('up', state.order === 'asc');
  $('order').disabled = state.live !== '';
  $('live').setAttribute('aria-pressed', String(state.live !== ''));
  $('key-forget').hidden = !api.key.get();
  const [from, to] = [seen.from, seen.to].map((ms) => (Number.isNaN(ms) ? seen.at : ms));
  const offsets = [...new Set([offsetText(from), offsetText(to)])];
  const years = [...new Set([from, to].map((ms) => local(ms).split('-')[0]))]; // dates are shown without
  $('zone').textContent = (years.join() === local(api.now()).split('-')[0] ? '' : `${years.join(' – ')} · `) + (offsets.length > 1 ? `${zoneName()}, ${offsets.join(' and ')}` : zone(to)) + (state.clock ? ' · by arrival' : '');
  $('sheet').classList.toggle('dated', isDated(from, to));
  for (const button of $('tabs').children) button.setAttribute('aria-pressed', String(button.value === state.tab));
  for (const name of ['rows', 'table', 'patterns']) $(`tab-${name}`).hidden = name !== (state.tab || 'rows');
  $('order').hidden = $('view').hidden = state.tab !== '';
}

// refresh shows the state anew. Answers to what was asked before are dropped.
function refresh() {
  abort.abort();
  abort = new AbortController();
  const { signal } = abort;
  tail.stop();
  clearInterval(chartTimer);
  clearTimeout(retryTimer);
  fix();
  marks = language.hits(state.q);
  isAsked = false;
  search.show(state.q);
  showControls();
  $('q-error').hidden = $('problem').hidden = true;
  progress.begin();
  if (state.live) {
    next = null;
    tail.start(state.q); // the rows are loaded when it follows
    chartTimer = setInterval(() => {
      if (tail.figures.paused || document.hidden) return;
      fix();
      loadChart(signal);
      if (!fields.names().length) loadFields();
    }, chartEvery);
  }
  showLive();
  loadFields();
  loadChart(signal);
  if (!state.live) loadTab();
}

function loadFields() {
  fields.load(wanted()).catch((error) => {
    if (error.status === 401) failed(error);
  });
}

function fieldsLoaded() {
  const names = fields.names();
  const chosen = by();
  const select = $('by');
  const option = (value, label = value) => h('option', { value }, label);
  select.replaceChildren(option(nothing, 'nothing'), ...names.slice(0, 300).map(({ text }) => option(text)));
  if (chosen !== nothing && ![...select.options].some(({ value }) => value === chosen)) select.append(option(chosen));
  select.value = chosen;
  if (state.tab === 'table') table.form(state);
  if (select.dataset.shown !== chosen) loadChart(abort.signal);
}

let chartAbort = new AbortController();

async function loadChart(signal) {
  const field = by();
  const select = $('by');
  if (![...select.options].some((option) => option.value === field)) select.append(h('option', { value: field }, field));
  select.value = field;
  select.dataset.shown = field;
  chartAbort.abort();
  const mine = chartAbort = new AbortController();
  signal.addEventListener('abort', () => mine.abort());
  if (signal.aborted) mine.abort();
  $('overview').classList.add('loading');
  const asked = { ...wanted(), by: field === nothing ? '' : field, tz: zoneName() };
  let answer = null;
  try {
    await progress.run('chart', 'Counted back to', mine.signal, async (budget, signal) => {
      const part = await api.histogram({ ...asked, budget }, { signal }, answer);
      answer = part;
      if (mine.signal.aborted) return answer;
      histogram.show(answer, field === nothing ? '' : field);
      $('overview').classList.remove('loading', 'stale');
      $('total').textContent = count(answer.total);
      $('total-unit').textContent = `${answer.total === 1 ? 'log' : 'logs'}${answer.complete ? '' : ' so far'}`;
      $('bucket').textContent = answer.buckets.length ? `${duration(answer.step)} a bar` : '';
      return answer;
    });
  } catch (error) {
    if (mine.signal.aborted) return;
    if (histogram.range()) $('overview').classList.add('stale'); // what is there stays; the rows' place tells why
    else {
      $('total').textContent = '–';
      histogram.fail(error.status >= 400 && error.status < 500 && !error.message.startsWith('by: ') ? '' : error.message); // the rows' place tells the rest
    }
    if (error.status === 401) failed(error);
    else if (state.tab) failed(error);
  } finally {
    if (!mine.signal.aborted) $('overview').classList.remove('loading');
  }
}

// loadTab shows what the tab is for.
function loadTab() {
  tabAbort.abort();
  tabAbort = new AbortController();
  const { signal } = tabAbort;
  progress.drop('rows', 'tab');
  abort.signal.addEventListener('abort', () => tabAbort.signal === signal && tabAbort.abort());
  if (state.tab === '') return loadFirst(signal);
  $('notice').hidden = true;
  $('body').classList.remove('failed');
  if (state.tab === 'table') table.form(state);
  return loadFigures(signal, state.tab === 'table'
    ? (budget, signal) => table.load(wanted(), { from: seen.from, to: seen.to }, budget, signal)
    : (budget, signal) => patterns.load(wanted(), { from: seen.from, to: seen.to }, state.vs, budget, signal));
}

// loadFigures asks for what can't be put together from parts: anew, with a longer budget, until all is in it.
async function loadFigures(signal, load) {
  $('busy').hidden = false;
  $('body').classList.add('loading');
  let seconds = 2;
  try {
    await progress.run('tab', 'Computed of what came since', signal, async (_, slice) => {
      const came = await load(`${seconds}s`, slice);
      if (signal.aborted) return came;
      $('body').classList.remove('loading', 'stale');
      $('problem').hidden = true;
      seconds = Math.min(60, 3 * seconds);
      past.add(state.q);
      return came;
    });
  } catch (error) {
    if (!signal.aborted) failed(error);
  } finally {
    if (!signal.aborted) {
      $('busy').hidden = true;
      $('body').classList.remove('loading');
    }
  }
}

async function loadFirst(signal) {
  next = null;
  $('body').classList.add('loading');
  $('end-note').hidden = $('more').hidden = true;
  if (!await load(signal, '')) return;
  const { id } = state;
  if (!id) return;
  if (!rows.has(id)) {
    let log;
    try {
      log = await api.one(id, { signal });
    } catch (error) {
      if (!signal.aborted) toast(error.status === 404 ? 'The record of this link is not there any more.' : `The record of this link can’t be shown: ${error.message}`);
      return;
    }
    if (signal.aborted) return;
    rows.prepend([log], Infinity);
    $('rows').firstChild.classList.add('apart');
    notice();
  }
  const kind = state.around;
  const item = rows.open(id);
  if (kind && item) around(kind, item);
}

async function loadMore() {
  if (!loading && next && state.tab === '') await load(tabAbort.signal, next);
}

// load reads as many rows as a page has, in as many steps as the service needs; it tells whether it could.
async function load(signal, cursor) {
  loading = true;
  $('busy').hidden = false;
  const asked = { ...wanted(), order: state.live ? 'desc' : state.order };
  const isFirst = !cursor;
  let missing = pageSize;
  let after = cursor;
  try {
    await progress.run('rows', asked.order === 'asc' ? 'Searched up to' : 'Searched back to', signal, async (budget, slice) => {
      const page = await api.logs({ ...asked, limit: missing, cursor: after, budget }, { signal: slice });
      if (signal.aborted) return {};
      if (isFirst && !after) {
        rows.clear();
        newest = 0;
        past.add(state.q); // it could be read, however long the rest takes
      }
      $('body').classList.remove('failed', 'stale', 'loading');
      $('problem').hidden = true;
      retryPause = 2;
      missing -= page.logs.length;
      after = page.next;
      const isDone = !page.next || page.complete || missing <= 0;
      showPage(page, isDone);
      tail.release();
      return { complete: isDone, reached: Date.parse(page.searched_to) };
    });
    return !signal.aborted;
  } catch (error) {
    if (signal.aborted) return false;
    if (cursor && error.status !== 401) toast(error.message); // what is there stays, and the button to try again
    else failed(error);
    return false;
  } finally {
    if (!signal.aborted) {
      loading = false;
      $('busy').hidden = true;
      $('body').classList.remove('loading');
      tail.release();
    }
  }
}

function showPage(page, isDone) {
  rows.append(page.logs);
  newest = Math.max(newest, ...page.logs.map((log) => Date.parse(state.clock ? log.inserted_at : log.time)));
  next = state.live ? null : page.next;
  $('more').hidden = !next || !isDone;
  $('end-note').hidden = !!next || !rows.size() || state.live !== '';
  $('end-note').textContent = 'That is all of this range.';
  notice(page, isDone);
  nearEnd.unobserve($('end')); // to be told again also where the end never left
  if (isDone) queueMicrotask(() => nearEnd.observe($('end')));
}

// notice says what to do when there is nothing to see.
function notice(page = {}, isDone = true) {
  const box = $('notice');
  box.hidden = rows.size() > 0 || !isDone || state.tab !== '';
  if (!box.hidden) box.replaceChildren(...(state.live ? waitingForLogs() : noLogs(page.hints ?? [])));
}

const button = (label, onclick) => h('button', { type: 'button', onclick }, label);

const waitingForLogs = () => [h('h2', {}, 'Waiting for logs'), h('p', {}, 'Those that match appear here as they are stored.')];

function noLogs(hints) {
  const bare = !state.q && !fields.names().length;
  return [
    h('h2', {}, 'No logs here'),
    h('p', {}, state.q ? 'Nothing in this range matches the search.' : 'Nothing was stored in this range.'),
    hints.length > 0 && h('ul', { class: 'hints' }, hints.map(({ text, q }) => h('li', {}, `${text}: `, button(q, () => go({ q }))))),
    h('p', {}, [['now-24h', 'Last 24 hours'], ['now-7d', 'Last 7 days'], ['now-30d', 'Last 30 days']]
      .filter(([from]) => resolve(from) < seen.from - 1000).map(([from, label]) => button(label, () => go({ from, to: 'now' }))),
    state.q && button('Clear the search', () => go({ q: '' }))),
    bare && h('pre', {}, `curl -d '{"level":"info","message":"hello"}' http://localhost:8080/log`),
  ].filter(Boolean);
}

// isShown reports whether the tab has an answer of before.
const isShown = () => (state.tab ? ({ table, patterns }[state.tab].csv()) : rows.size() > 0);

// failed tells of an answer that is an error, where it belongs: a key, a place in the query, or anything else. What was found
// before stays.
function failed(error) {
  if (error.status === 401 || (error.status === 403 && api.key.get())) return askKey(error);
  tail.stop();
  showLive();
  const isQuery = /^q: /.test(error.message);
  const place = isQuery && /\bat (\d+)\b/.exec(error.message);
  if (isQuery) {
    $('q-error').textContent = error.message.slice('q: '.length);
    $('q-error').hidden = false;
    if (place && search.value() === state.q) search.mark(Number(place[1]));
  }
  $('body').classList.add(rows.size() || state.tab ? 'stale' : 'failed');
  $('more').hidden = true;
  const isLost = error.status === 0;
  const again = isLost ? ` It is tried again in ${retryPause} s.` : '';
  const title = error.status === 504 ? 'That took too long: ' : '';
  $('problem').hidden = isQuery && !rows.size() && !state.tab;
  $('problem-text').textContent = (isQuery ? 'This search can’t be read.' : title + error.message + again)
    + (isShown() ? ' What is shown is from before.' : '');
  $('problem-again').hidden = isQuery;
  if (!rows.size() && !state.tab) {
    $('notice').hidden = false;
    $('notice').replaceChildren(...(error.status === 400 ? [h('h2', {}, 'This search can’t be read'), !isQuery && h('p', {}, error.message)].filter(Boolean)
      : [h('h2', {}, 'That did not work')]));
  }
  if (isLost) {
    clearTimeout(retryTimer);
    retryTimer = setTimeout(refresh, retryPause * 1000);
    retryPause = Math.min(2 * retryPause, longestPause);
  }
}

let isAsked = false; // for a key, since the search began

function askKey(error) {
  if (isAsked && !$('key-box').open) return; // the reader has closed it
  isAsked = true;
  const given = api.key.get();
  tail.stop();
  $('key-error').hidden = !given;
  $('key-error').textContent = error.status === 403 ? error.message : 'This key is not taken.';
  if (!$('key-box').open) {
    $('key').value = '';
    $('key-box').returnValue = '';
    $('key-box').showModal();
  }
}

$('key-box').addEventListener('close', () => {
  if (rows.size() || $('key-box').returnValue === 'given') return;
  $('notice').hidden = false;
  $('notice').replaceChildren(h('h2', {}, 'A key is needed'), h('p', {}, 'This service shows its logs to those who have a key with the scope read.'), button('Enter a key', refresh));
});
$('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  api.key.set($('key').value.trim(), $('key-keep').checked);
  $('key-box').close('given');
  refresh();
});
$('key-forget').addEventListener('click', () => {
  api.key.forget();
  past.clear();
  location.reload();
});

// Live.

function toggleLive() {
  if (state.live) go({ live: '' });
  else go({ live: '1', tab: '', order: 'desc', clock: '', ...(state.to === 'now' ? {} : { from: 'now-15m', to: 'now' }) });
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

const narrowScreen = matchMedia('(max-width: 1000px)');

function showFields(on) {
  $('body').classList.toggle('with-fields', on);
  $('fields-toggle').setAttribute('aria-expanded', String(on));
}

function toggleFields() {
  const on = !$('body').classList.contains('with-fields');
  showFields(on);
  if (!narrowScreen.matches) localStorage.setItem('millrace.fields', on ? '' : 'hidden');
}

function aroundFocused() {
  const item = rows.focused() ?? rows.item(state.id);
  if (item && state.tab === '') around(item.around ? '' : 'all', item);
}

const toTab = (tab) => go({ tab, live: tab ? '' : state.live });

$('reload').addEventListener('click', refresh);
$('problem-again').addEventListener('click', refresh);
$('order').addEventListener('click', turn);
$('zoom-out').addEventListener('click', zoomOut);
$('theme').addEventListener('click', toggleTheme);
$('zone').addEventListener('click', () => go({ zone: state.zone ? '' : 'utc' }));
$('fields-toggle').addEventListener('click', toggleFields);
$('share').addEventListener('click', () => copy(href(pinned()), 'Link'));
$('alerts').addEventListener('click', showAlerts);
$('help').addEventListener('click', () => $('help-box').showModal());
$('more').addEventListener('click', loadMore);
$('by').addEventListener('change', () => go({ by: $('by').value }));
for (const tab of $('tabs').children) tab.addEventListener('click', () => toTab(tab.value));
$('language-box').addEventListener('toggle', (event) => {
  if (event.newState !== 'open') return;
  const at = $('search').getBoundingClientRect();
  $('language-box').style.top = `${at.bottom + 6}px`;
  $('language-box').style.left = `${Math.max(6, at.right - $('language-box').offsetWidth)}px`;
});
nearEnd.observe($('end'));

const keys = {
  '/': () => search.focus(), h: () => search.focus(true), j: () => rows.move(1), k: () => rows.move(-1), l: toggleLive, r: refresh, z: zoomOut, o: turn,
  f: toggleFields, t: toggleTheme, p: () => pause(!tail.figures.paused), '?': () => $('help-box').showModal(),
  1: () => toTab(''), 2: () => toTab('table'), 3: () => toTab('patterns'), c: aroundFocused,
  d: () => $('range-box').showPopover(), e: () => $('save-box').showPopover(), a: showAlerts, v: () => $('view-box').showPopover(),
  w: () => go({ wrap: state.wrap ? '' : '1' }), u: () => go({ zone: state.zone ? '' : 'utc' }),
  Escape: () => rows.close(),
};
addEventListener('keydown', (event) => {
  const typing = event.target.matches('input, select, textarea') && event.target.checkVisibility(); // a closed popover's may still have the focus
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open], :popover-open')) return;
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

addEventListener('popstate', () => {
  state = read();
  refresh();
});
// The first search was made by this machine's clock. If that turns out to be wrong, its window is another one. A second time would be no clock.
addEventListener('clock', () => (isRelative(state.from) || isRelative(state.to)) && refresh(), { once: true });
addEventListener('online', () => {
  if (!$('problem').hidden) refresh();
});

showFields(!narrowScreen.matches && localStorage.getItem('millrace.fields') !== 'hidden');
refresh();
