// How rows are shown: the columns, their order and their widths, wrapped lines, colours.
import { $, h, place } from './dom.js';
import { split } from './state.js';

const narrowest = 4; // characters of a column
const widest = 400;

// viewBox calls onchange(change) with changes of the state, and onresize(widths, isDone) while a column is resized. fieldNames() are
// offered as columns, widthOf(i) is how wide one is shown, in characters.
export function viewBox({ onchange, onresize, fieldNames, widthOf }) {
  const popover = $('view-box');
  let columns = [];
  let widths = new Map(); // by column, of those that the reader has resized

  const written = (list) => list.map((path) => widths.get(path) ?? '').join(',').replace(/,+$/, '');
  const set = (list) => onchange({ cols: list.join(','), widths: written(list) });

  // shift moves a column to another place.
  function shift(i, by) {
    const list = [...columns];
    list.splice(i + by, 0, ...list.splice(i, 1));
    set(list);
    $('column-list').children[i + by]?.querySelector(by < 0 ? '.earlier' : '.later')?.focus();
  }

  // handle is the edge of a column, which the mouse drags and arrow keys move. A double click or Enter has it as wide as it needs.
  function handle(path, i) {
    const grip = h('span', {
      class: 'grip', role: 'separator', tabindex: 0, 'aria-orientation': 'vertical', 'aria-label': `Width of ${path}`, 'aria-valuemin': narrowest,
      'aria-valuemax': widest, title: 'Drag, or arrow keys: the width · double click, or Enter: as it needs',
    });
    const show = () => grip.setAttribute('aria-valuenow', Math.round(widthOf(i) ?? narrowest));
    const resize = (width, isDone = true) => {
      if (width) widths.set(path, Math.max(narrowest, Math.min(widest, Math.round(width))));
      else widths.delete(path);
      onresize(written(columns), isDone);
      show();
    };
    const heads = $('heads');
    const character = () => heads.firstChild.getBoundingClientRect().width / (heads.parentNode.classList.contains('dated') ? 25 : 13); // as style.css has it
    const seen = () => grip.parentNode.getBoundingClientRect().width / character(); // the last column may be wider than it asks for
    let drag = null;
    grip.addEventListener('pointerdown', (event) => {
      if (event.button !== 0) return;
      grip.setPointerCapture(event.pointerId);
      drag = { x: event.clientX, width: seen() };
    });
    const move = (event, isDone) => drag && event.clientX !== drag.x && resize(drag.width + (event.clientX - drag.x) / character(), isDone);
    grip.addEventListener('pointermove', (event) => move(event, false));
    grip.addEventListener('pointerup', (event) => {
      move(event, true);
      drag = null;
    });
    grip.addEventListener('pointercancel', () => { drag = null; });
    grip.addEventListener('dblclick', () => resize(0));
    grip.addEventListener('focus', show);
    grip.addEventListener('keydown', (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) resize(seen() + (event.shiftKey ? 10 : 1) * by);
      else if (event.key === 'Enter') resize(0);
      else return;
      event.preventDefault();
    });
    show();
    return grip;
  }

  function draw() {
    const tool = (name, label, title, disabled, onclick) => h('button', { type: 'button', class: `quiet ${name}`, title, 'aria-label': title, disabled, onclick }, label);
    $('column-list').replaceChildren(...columns.map((path, i) => h('li', {}, h('span', { title: path }, path),
      tool('earlier', '↑', `${path} earlier`, i === 0, () => shift(i, -1)),
      tool('later', '↓', `${path} later`, i === columns.length - 1, () => shift(i, 1)),
      tool('away', '×', `Without ${path}`, false, () => set(columns.filter((other) => other !== path))))));
    $('column-names').replaceChildren(...['message', 'level', ...fieldNames().map(({ text }) => text)]
      .filter((name, i, all) => all.indexOf(name) === i && !columns.includes(name)).map((value) => h('option', { value })));
    const heads = columns.map((path, i) => h('span', { class: 'head-cell', title: path }, h('span', {}, path),
      i > 0 && tool('earlier', '‹', `${path} to the left`, false, () => shift(i, -1)),
      tool('away', '×', `Without the column ${path}`, false, () => set(columns.filter((other) => other !== path))), handle(path, i)));
    $('heads').hidden = !columns.length;
    $('heads').replaceChildren(h('span', {}, 'time'), ...heads);
  }

  popover.addEventListener('toggle', (event) => {
    if (event.newState !== 'open') return;
    draw();
    place(popover, $('view'));
  });
  $('column-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const wanted = split($('column').value).filter((path) => !columns.includes(path));
    $('column').value = '';
    if (wanted.length) set([...columns, ...wanted]);
  });
  $('wrap').addEventListener('change', () => onchange({ wrap: $('wrap').checked ? '1' : '' }));
  $('ansi').addEventListener('change', () => onchange({ ansi: $('ansi').checked ? '' : 'off' }));

  return {
    show(state) {
      columns = split(state.cols);
      const given = state.widths.split(',');
      widths = new Map(columns.map((path, i) => [path, Math.round(given[i])]).filter(([, width]) => width >= narrowest && width <= widest));
      $('wrap').checked = state.wrap !== '';
      $('ansi').checked = state.ansi !== 'off';
      draw();
    },
    // widths are those that the reader has chosen, undefined for the others.
    widths: () => columns.map((path) => widths.get(path)),
    // turn has a field as a column, or no longer.
    turn: (path) => set(columns.includes(path) ? columns.filter((other) => other !== path) : [...(columns.length ? columns : ['message']), path]),
  };
}
