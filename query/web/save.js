// The export of what is seen, under a name that says what it is, and the search in other tools' words.
import { $, copy, place, toast } from './dom.js';
import * as api from './api.js';
import { count } from './chart.js';
import { split } from './state.js';
import { clock, date, isDated, local } from './time.js';

const inShell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`);

// csvCell writes a cell as RFC 4180 has it.
const csvCell = (value) => {
  const text = value === null || value === undefined ? '' : typeof value === 'object' && !('source' in value) ? JSON.stringify(value) : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

const toCSV = (rows) => rows.map((row) => row.map(csvCell).join(',')).join('\r\n') + '\r\n';

// fileName says what a file has: the search and its time, in letters that every system takes.
function fileName(what, q, { from, to }, ending) {
  const slug = q.normalize('NFKD').replace(/[^\p{L}\p{N}._-]+/gu, '-').replace(/^[-.]+|-+$/g, '').slice(0, 60);
  const stamp = (ms) => local(ms).slice(0, 16).replace(' ', 'T').replaceAll(':', '');
  const end = isDated(from, to) ? stamp(to) : clock(to, 'm').replace(':', '');
  return `${[what, slug, `${stamp(from)}-${end}`].filter(Boolean).join('_')}.${ending}`;
}

// saveBox offers what seen() returns: {tab, search, window, columns, total, table}.
export function saveBox({ seen }) {
  const popover = $('save-box');
  const format = () => popover.querySelector('[name="format"]:checked').value;
  const isTable = () => seen().tab !== '';
  const fields = () => split($('save-fields').value);
  const name = () => {
    const { tab, search, window } = seen();
    return fileName(tab || 'logs', search.q, window, isTable() ? 'csv' : format());
  };

  function draw() {
    const { total, search, tab, window } = seen();
    $('save-records').hidden = isTable();
    $('save-what').textContent = isTable() ? `The ${tab} as they are shown, as CSV.`
      : `${total} from ${date(window.from)}, ${clock(window.from)} to ${isDated(window.from, window.to) ? `${date(window.to)}, ` : ''}${clock(window.to)}, ${search.order === 'asc' ? 'oldest' : 'newest'} first.`;
    $('save-name').textContent = name();
  }

  popover.addEventListener('beforetoggle', (event) => {
    if (event.newState !== 'open') return;
    const { columns } = seen();
    const clocks = seen().search.clock || 'time';
    $('save-fields').value = columns.length ? [clocks, ...columns].join(', ') : '';
    if (columns.length) popover.querySelector('[value="csv"]').checked = true;
    draw();
  });
  popover.addEventListener('toggle', (event) => event.newState === 'open' && place(popover, $('save')));
  popover.addEventListener('change', draw);

  $('save-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    popover.hidePopover();
    const { search, table } = seen();
    if (isTable()) {
      const rows = table();
      if (!rows) return toast('There is nothing to export yet.');
      return api.keep(toCSV(rows), name(), 'text/csv');
    }
    try {
      await api.save({ ...search, format: format(), fields: fields().join(',') }, name(), (bytes) => toast(`Exporting: ${count(Math.round(bytes / 1e5) / 10)} MB`));
    } catch (error) {
      if (error.name !== 'AbortError') toast(`The export failed: ${error.message}`);
    }
  });

  const base = () => new URL('.', location.href).href.replace(/\/$/, '');
  const given = (search) => Object.entries(search).filter(([, value]) => value !== '' && value != null);

  $('copy-sql').addEventListener('click', async () => {
    try {
      await copy(await api.sql(seen().search), 'SQL');
    } catch (error) {
      toast(error.message);
    }
  });
  $('copy-curl').addEventListener('click', () => {
    const all = { ...seen().search, ...(fields().length || format() === 'csv' ? { format: format(), fields: fields().join(',') } : {}) };
    copy(['curl -fsSG --compressed', api.key.get() && '-H "Authorization: Bearer $API_KEY"', inShell(`${base()}/logs/export`),
      ...given(all).map(([key, value]) => `--data-urlencode ${inShell(`${key}=${value}`)}`)].filter(Boolean).join(' \\\n  '), 'curl');
  });
  $('copy-cli').addEventListener('click', () => {
    const { search } = seen();
    copy([`QUERY_URL=${inShell(base())} millrace logs -n all`, search.order === 'asc' ? '' : '-r', search.clock && `--clock ${search.clock}`,
      `--since ${inShell(search.from)}`, search.to && `--until ${inShell(search.to)}`, search.q && `-- ${inShell(search.q)}`].filter(Boolean).join(' '), 'millrace logs');
  });
}
