// The table: figures of the records by groups, as GET /logs/stats computes them, and lines or bars of them over time.
import { $, h, s, shorten } from './dom.js';
import * as api from './api.js';
import * as language from './language.js';
import { count, levels, palette } from './chart.js';
import { figure } from './fields.js';
import { known } from './levels.js';
import { split } from './state.js';
import { clock, date, isDated, ticks, zoneName } from './time.js';

// figures by name: what is written in parentheses behind them.
const calcs = {
  count: '', uniq: 'field', share: 'query', rate: '', sum: 'field', avg: 'field', min: 'field', max: 'field',
  p50: 'field', p90: 'field', p95: 'field', p99: 'field', first: 'field', last: 'field',
};
const labels = {
  count: 'count', uniq: 'distinct values', share: 'share', rate: 'per second', sum: 'sum', avg: 'average', min: 'least', max: 'most',
  p50: 'median', p90: 'p90', p95: 'p95', p99: 'p99', first: 'first', last: 'last',
};
const tick = new Intl.NumberFormat('en-US', { notation: 'compact', maximumSignificantDigits: 3 });
const additive = /^(?:count|sum|rate)\b/;
const drawn = palette; // groups in a drawing
const height = 180;
const margin = { top: 8, right: 8, bottom: 20, left: 52 };

// parse cuts a figure such as p95(duration_ms) into its name and what is in the parentheses.
const parse = (calc) => {
  const [, name, argument = ''] = /^([\w.]+)(?:\((.*)\))?$/s.exec(calc) ?? [null, calc];
  return { name, argument };
};

const cellText = (value, calc) => {
  if (value === null || value === undefined) return '–';
  if (typeof value !== 'number') return typeof value === 'object' && !('source' in value) ? JSON.stringify(value) : String(value);
  if (calc?.startsWith('share')) return `${Number((100 * value).toPrecision(3))} %`;
  return figure(value);
};

// tablePanel calls onchange(change) with changes of the state, and onnarrow(condition, exclude) for a group that was clicked.
export function tablePanel({ onchange, onnarrow, fieldNames }) {
  const form = $('figures');
  let state = {};
  let shown = null; // the answer

  const option = (value, label = value, selected = false) => h('option', { value, selected }, label);

  // draft is what the form says.
  const draft = () => [...form.querySelectorAll('.figure')].map((part) => {
    const name = part.querySelector('select').value;
    const argument = part.querySelector('input').value.trim();
    return calcs[name] ? `${name}(${argument})` : name;
  });

  const isReady = (calc) => {
    const { name, argument } = parse(calc);
    return !calcs[name] || argument;
  };

  function submit() {
    const ready = draft().filter(isReady);
    const calc = ready.join(',');
    const group = split($('group').value).join(',');
    if (!ready.length || (calc === state.calc && group === state.group)) return;
    const sorted = state.sort.replace(/^-/, '');
    onchange({ calc, group, sort: ready.includes(sorted) ? state.sort : '' });
  }

  // part is the controls of one figure.
  function part(calc, isOnly) {
    const { name, argument } = parse(calc);
    const input = h('input', {
      value: argument, list: calcs[name] === 'field' ? 'number-names' : null, 'aria-label': 'Of', autocomplete: 'off', spellcheck: 'false',
      placeholder: calcs[name] === 'query' ? 'a search: level:error' : 'a field', hidden: !calcs[name],
    });
    const select = h('select', { 'aria-label': 'Figure' }, Object.keys(calcs).map((key) => option(key, labels[key], key === name)),
      !calcs[name] && calcs[name] !== '' && option(name, name, true));
    const of = h('span', { hidden: !calcs[name] }, 'of');
    select.addEventListener('change', () => {
      const takes = calcs[select.value];
      input.hidden = of.hidden = !takes;
      input.placeholder = takes === 'query' ? 'a search: level:error' : 'a field';
      if (takes === 'field') input.setAttribute('list', 'number-names');
      else input.removeAttribute('list');
      if (!takes || input.value) submit(); // else what it is of is still missing
    });
    input.addEventListener('change', submit);
    return h('span', { class: 'figure' }, select, of, input, !isOnly && h('button', {
      type: 'button', class: 'quiet', title: 'Without this figure', 'aria-label': `Without ${calc}`,
      onclick: (event) => {
        event.target.closest('.figure').remove();
        submit();
      },
    }, '×'));
  }

  function drawForm() {
    const wanted = split(state.calc);
    // What says the same already keeps the focus, and a figure that is not ready yet.
    if (draft().filter(isReady).join(',') !== wanted.join(',')) $('figure-list').replaceChildren(...wanted.map((calc) => part(calc, wanted.length === 1)));
    $('group').value = state.group;
    for (const button of $('every').children) button.setAttribute('aria-pressed', String(button.value === state.every));
    const names = fieldNames();
    $('field-names').replaceChildren(...names.map(({ text }) => option(text)));
    $('number-names').replaceChildren(...[...names.filter((n) => n.isNumber), ...names.filter((n) => !n.isNumber)].map(({ text }) => option(text)));
  }

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    submit();
  });
  $('group').addEventListener('change', submit);
  $('figure-more').addEventListener('click', () => {
    $('figure-list').append(part('p95()', false));
    form.querySelector('.figure:last-child select').focus();
  });
  for (const button of $('every').children) button.addEventListener('click', () => onchange({ every: button.value }));

  // condition is the search for a value of a group; a group without one has null.
  const condition = (field, value) => (value === null ? `(-${field}:* OR (${field}:null -${field}:"null"))`
    : `${field}:${value === 'null' ? '"null"' : language.either(value)}`);

  function drawTable() {
    const { columns, rows, others = [] } = shown;
    const groups = split(state.group).length;
    const order = state.sort || `-${columns[groups]}`;
    const sorted = columns.findIndex((column) => column === order.replace(/^-/, ''));
    const isFalling = order.startsWith('-');
    const isOwnOrder = sorted >= 0 && sorted < groups; // groups are sorted here, figures by the service
    const list = isOwnOrder ? rows.toSorted((a, b) => (isFalling ? -1 : 1) * String(a[sorted] ?? '').localeCompare(String(b[sorted] ?? ''), 'en', { numeric: true })) : rows;
    const most = columns.map((_, i) => Math.max(0, ...rows.map((row) => (typeof row[i] === 'number' ? row[i] : 0))));
    const head = (column, i) => h('th', {
      scope: 'col', class: i < groups ? null : 'number', 'aria-sort': i === sorted ? (isFalling ? 'descending' : 'ascending') : null,
    }, h('button', { type: 'button', onclick: () => onchange({ sort: i === sorted ? (isFalling ? '' : '-') + column : (i < groups ? '' : '-') + column }) },
      column, i === sorted && (isFalling ? ' ↓' : ' ↑')));
    const group = (field, value) => {
      const text = value === null ? 'without the field' : value === '' ? '""' : shorten(value, 200);
      const level = value !== null && known(value);
      const inside = value === null ? h('em', {}, text) : text;
      const wanted = condition(field, value);
      return h('th', { scope: 'row', class: level && /level|severity/i.test(field) ? `level-${level}` : null }, value !== null && value.length >= 1000 || !language.fits(wanted)
        ? h('span', {}, inside) : h('button', {
          type: 'button', title: `${wanted}\nclick: these logs · Shift-click: without these`, onclick: (event) => onnarrow(wanted, event.shiftKey),
        }, inside));
    };
    const number = (value, i) => h('td', { class: 'number' }, cellText(value, columns[i]),
      typeof value === 'number' && most[i] > 0 && groups > 0 && h('meter', { min: 0, max: most[i], value, 'aria-hidden': 'true' }));
    const fields = split(state.group);
    $('grid').replaceChildren(
      h('thead', {}, h('tr', {}, columns.map(head))),
      h('tbody', {}, list.map((row) => h('tr', {}, row.map((value, i) => (i < groups ? group(fields[i], value) : number(value, i))))),
        others.map((row) => h('tr', { class: 'others' }, row.map((value, i) => (i < groups ? h('th', { scope: 'row' }, i === 0 && 'all others') : number(value, i)))))));
    $('grid-none').hidden = rows.length > 0;
    $('grid-note').textContent = groups ? `${count(rows.length)} ${rows.length === 1 ? 'group' : 'groups'}${others.length ? ', and all others together' : ''}` : '';
  }

  // drawOver draws the series, a figure in each drawing. Groups beyond the first ten are left to the table.
  function drawOver({ columns, rows }, window) {
    const groups = split(state.group).length;
    const names = new Map();
    for (const row of shown.rows) {
      const key = JSON.stringify(row.slice(0, groups));
      if (names.size < drawn) names.set(key, row.slice(0, groups).map((value) => value ?? 'without the field').join(' · ') || 'all');
    }
    const times = [...new Set(rows.map((row) => Date.parse(row[0])))].sort((a, b) => a - b);
    const step = Math.min(...times.slice(1).map((at, i) => at - times[i]), window.to - window.from);
    const series = [...names].map(([key, name], i) => ({
      name, class: `series-${i}`, points: new Map(rows.filter((row) => JSON.stringify(row.slice(1, groups + 1)) === key).map((row) => [Date.parse(row[0]), row])),
    }));
    $('over').replaceChildren(...columns.slice(groups + 1).map((calc, n) => drawing(calc, groups + 1 + n, { series, times, step, window })));
  }

  function drawing(calc, column, { series, times, step, window }) {
    const width = Math.max(280, $('over').clientWidth - 36); // its padding
    const [from, to] = [Math.min(window.from, times[0] ?? window.from), Math.max(window.to, (times.at(-1) ?? 0) + step)];
    const isStacked = state.every === 'bars' && additive.test(calc);
    const valueOf = (one, at) => {
      const value = one.points.get(at)?.[column];
      return typeof value === 'number' ? value : Number(value?.source ?? NaN);
    };
    const tops = times.map((at) => (isStacked ? series.reduce((sum, one) => sum + (valueOf(one, at) || 0), 0)
      : Math.max(0, ...series.map((one) => valueOf(one, at) || 0))));
    const most = Math.max(...tops, 0) || 1;
    const x = (ms) => margin.left + ((ms - from) / (to - from)) * (width - margin.left - margin.right);
    const y = (value) => height - margin.bottom - (Math.max(0, value) / most) * (height - margin.top - margin.bottom);
    const heap = new Map();
    const shapes = series.map((one) => {
      if (state.every === 'bars') {
        return times.map((at) => {
          const value = valueOf(one, at);
          if (!(value > 0)) return null;
          const base = isStacked ? heap.get(at) ?? 0 : 0;
          if (isStacked) heap.set(at, base + value);
          const share = isStacked ? 1 : 1 / series.length;
          const left = x(at) + (isStacked ? 0 : ((x(at + step) - x(at)) * series.indexOf(one)) / series.length);
          return s('rect', { class: `fill-${one.class}`, x: left, width: Math.max(0.8, (x(at + step) - x(at)) * share - 1), y: y(base + value), height: y(base) - y(base + value) });
        });
      }
      let [path, points] = ['', '']; // a point with nothing on either side is no line
      times.forEach((at, i) => {
        const [before, value, after] = [times[i - 1], at, times[i + 1]].map((t) => valueOf(one, t));
        if (Number.isNaN(value)) return;
        const place = `${x(at + step / 2).toFixed(1)} ${y(value).toFixed(1)}`;
        path += `${Number.isNaN(before) ? 'M' : 'L'}${place}`;
        if (Number.isNaN(before) && Number.isNaN(after)) points += `M${place}h.01`;
      });
      return [s('path', { class: `line-${one.class}`, d: path }), points !== '' && s('path', { class: `line-${one.class} points`, d: points })];
    });
    const label = (ms) => `${isDated(window.from, window.to) ? `${date(ms)} ` : ''}${clock(ms)}`;
    const peak = tops.length ? times[tops.indexOf(Math.max(...tops))] : null;
    return h('figure', {},
      h('figcaption', {}, h('b', {}, calc), series.length > 1 && series.map((one) => h('span', {}, h('i', { class: `dot fill-${one.class}` }), shorten(one.name, 60)))),
      s('svg', {
        width, height, viewBox: `0 0 ${width} ${height}`, role: 'img',
        'aria-label': `${calc} over time${peak === null ? '' : `, ${cellText(Math.max(...tops), calc)} at most, at ${label(peak)}`}`,
      },
      (peak === null || !Math.max(...tops) ? [] : levels(most, 4.5)).map((value) => s('g', {}, s('line', { class: 'grid', x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }),
        s('text', { class: 'tick', x: margin.left - 7, y: y(value) + 4, 'text-anchor': 'end' }, calc.startsWith('share') ? `${Number((100 * value).toPrecision(3))} %` : tick.format(value)))),
      shapes,
      s('line', { class: 'axis', x1: margin.left, x2: width - margin.right, y1: height - margin.bottom + 0.5, y2: height - margin.bottom + 0.5 }),
      ticks(from, to, Math.max(2, Math.floor(width / 110))).map(([ms, text]) => s('text', {
        class: 'tick', x: Math.min(x(ms), width), y: height - 4, 'text-anchor': x(ms) > width - 30 ? 'end' : 'middle',
      }, text)),
      times.map((at) => s('rect', { class: 'sense', x: x(at), y: margin.top, width: Math.max(1, x(at + step) - x(at)), height: height - margin.top - margin.bottom },
        s('title', {}, [label(at), ...series.map((one) => `${shorten(one.name, 40)}: ${cellText(valueOf(one, at), calc)}`)].join('\n'))))));
  }

  return {
    // draft shows the controls for a state, before there is an answer to it.
    form(wanted) {
      state = wanted;
      drawForm();
    },
    // load computes the table within a budget and shows it; it returns how far that came.
    async load(search, window, budget, signal) {
      const asked = {
        ...search, calc: state.calc, by: state.group, budget, order: split(state.calc).includes(state.sort.replace(/^-/, '')) ? state.sort : '',
      };
      const [answer, over] = await Promise.all([api.stats(asked, { signal }),
        state.every && api.stats({ ...asked, every: 'auto', tz: zoneName(), limit: drawn }, { signal })]);
      if (signal.aborted) return {};
      shown = answer;
      drawTable();
      $('over').hidden = !over;
      if (over) drawOver(over, window);
      const slowest = over && !over.complete ? over : answer;
      return { complete: answer.complete && (!over || over.complete), reached: Date.parse(slowest.searched_to) };
    },
    // csv returns what is shown.
    csv: () => shown && [shown.columns, ...shown.rows, ...(shown.others ?? [])],
  };
}
