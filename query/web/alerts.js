// The saved searches: what each is up to, since when, and what it was. A click opens one at the window that was looked at.
import { $, h } from './dom.js';
import * as api from './api.js';
import { count } from './chart.js';
import { duration, local } from './time.js';

const lookEvery = 5000; // ms

// The states, the most urgent first.
const order = ['firing', 'failing', 'pending', 'no data', 'new', 'ok', 'counted'];

// alertsBox calls onopen(change) with the state of the page that shows a search, and onfail(error) when the service refuses.
export function alertsBox({ onopen, onfail }) {
  const box = $('alerts-box');
  let timer = null;
  let abort = null;

  const when = (text) => h('time', { datetime: text, title: local(Date.parse(text)) }, `${duration(Math.max(api.now() - Date.parse(text), 1000))} ago`);

  // figures are the last values of a group, and of nothing else its count.
  const figures = ({ count: n, value = {} }) => Object.entries({ count: n, ...value }).map(([name, v]) => `${name} ${typeof v === 'number' ? count(v) : v ?? '–'}`).join(', ');

  const nameOf = ({ group, pattern }) => pattern ?? (Object.entries(group).map(([name, value]) => `${name}=${value ?? '(none)'}`).join(' ') || 'all records');

  const badge = (state) => h('span', { class: `alert-state ${state}` }, state === 'failing' ? 'error' : state);

  // opens is a button that shows a search. No other has its key: what had the focus is found again by it when the list is drawn anew.
  function opens(label, { q, window = { from: 'now-1h', to: 'now' } }, ...key) {
    return h('button', { type: 'button', class: 'opens', title: q, 'data-key': JSON.stringify(key), onclick: () => {
      box.close();
      onopen({ q, ...window });
    } }, label);
  }

  const since = (text) => text && h('span', { class: 'quietly' }, 'since ', when(text));

  // changed returns when a search came into its state.
  const changed = ({ state, alerts = [], history = [] }) => alerts.filter((alert) => alert.state === state).map((alert) => alert.fired ?? alert.since).sort()[0] ?? history[0]?.at;

  function item(search) {
    const { name, state, condition, by, summary, failure, alerts = [], history = [], window, more_groups: more } = search;
    return h('li', {},
      h('p', {}, badge(state), opens(name, search, name), since(changed(search))),
      h('p', {}, condition ? h('code', {}, condition) : 'its records are counted', by && ` by ${by.join(', ')}`, search.for && search.for !== '0s' && ` for ${search.for}`, search.all && `: ${figures(search.all)}`),
      summary && h('p', {}, summary),
      failure && h('p', { class: 'failing' }, failure),
      alerts.length > 0 && h('ul', {}, alerts.map((alert) => h('li', {},
        badge(alert.state), opens(nameOf(alert), { q: alert.q, window }, name, nameOf(alert)),
        h('span', {}, figures(alert)), since(alert.fired ?? alert.since)))),
      more && h('p', { class: 'quietly' }, 'There are more groups.'),
      history.length > 0 && h('details', { 'data-of': name }, h('summary', { 'data-key': JSON.stringify([name, 'history', null]) }, `History of ${name}`), h('ol', {}, history.map((change) => h('li', {},
        h('time', { datetime: change.at }, local(Date.parse(change.at))), h('span', {}, change.what), opens(nameOf(change), change, name, nameOf(change), change.at, change.what),
        h('span', {}, figures(change)))))));
  }

  function draw({ file, searches, receivers, state_error: unknown }) {
    const unfolded = new Set([...box.querySelectorAll('details[open]')].map((details) => details.dataset.of));
    const { key } = document.activeElement.dataset;
    const sorted = searches.toSorted((a, b) => order.indexOf(a.state) - order.indexOf(b.state) || a.name.localeCompare(b.name));
    $('alerts-list').replaceChildren(...sorted.map(item));
    for (const details of box.querySelectorAll('details')) details.open = unfolded.has(details.dataset.of);
    if (key) [...$('alerts-list').querySelectorAll('[data-key]')].find((e) => e.dataset.key === key)?.focus();
    const firing = searches.filter(({ state }) => state === 'firing').length;
    $('alerts-note').replaceChildren(!file ? 'There are none: SEARCHES_FILE is not set.'
      : `${count(searches.length)} searches, ${count(firing)} firing.`);
    const wrong = [file?.error && `The file is not taken: ${file.error}`, unknown && `${unknown}.`,
      ...receivers.filter(({ failure }) => failure).map(({ name, failure, waiting }) => `Receiver ${name}: ${failure}${waiting ? `, ${count(waiting)} messages wait` : ''}`)].filter(Boolean);
    $('alerts-wrong').replaceChildren(...wrong.map((text) => h('p', { class: 'failing' }, text)));
  }

  async function look() {
    clearTimeout(timer);
    abort?.abort();
    const { signal } = abort = new AbortController();
    try {
      const answer = await api.searches({ signal });
      if (signal.aborted) return;
      draw(answer);
    } catch (error) {
      if (signal.aborted) return;
      if ([401, 403].includes(error.status)) return box.close(onfail(error));
      $('alerts-wrong').replaceChildren(h('p', { class: 'failing' }, error.message));
    }
    if (box.open) timer = setTimeout(look, lookEvery);
  }

  box.addEventListener('close', () => {
    clearTimeout(timer);
    abort?.abort();
  });

  // open shows the searches.
  return function open() {
    box.showModal();
    look();
  };
}
