// The time range: its button and popover. Times are typed as people write them (when.js).
import { $, h, place } from './dom.js';
import { now } from './api.js';
import { clock, date, iso, isRelative, local, offsetText, presets, rangeName, resolve, zone } from './time.js';
import { read, twoOf } from './when.js';

// rangePicker calls onchange(from, to), and onzone(utc) and onclock(arrival) for the two switches.
export function rangePicker({ onchange, onzone, onclock }) {
  const button = $('range');
  const popover = $('range-box');
  const [from, to] = [$('range-from'), $('range-to')];
  let shown = { from: '', to: '' };

  const pick = (start, end) => {
    popover.hidePopover();
    onchange(start, end);
  };
  $('presets').append(...presets.map(([start, label]) =>
    h('button', { type: 'button', 'data-from': start, onclick: () => pick(start, 'now') }, label)));

  const typed = (text) => (isRelative(text) || Number.isNaN(resolve(text)) ? text : local(resolve(text)));

  popover.addEventListener('toggle', (event) => {
    if (event.newState !== 'open') return;
    place(popover, button);
    from.value = typed(shown.from);
    to.value = typed(shown.to);
    for (const preset of $('presets').children) {
      preset.setAttribute('aria-pressed', String(preset.dataset.from === shown.from && shown.to === 'now'));
    }
    check();
    from.focus();
    from.select();
  });

  // both returns what the two texts say; an empty end is now.
  function both() {
    const start = read(from.value, { now: now() });
    const at = start?.ms ?? (start ? resolve(start.text, now()) : NaN);
    const end = to.value.trim() ? read(to.value, { now: now(), isEnd: true, after: Number.isNaN(at) ? null : at }) : { text: 'now' };
    return { start, end, at, until: end?.ms ?? (end ? resolve(end.text, now(), true) : NaN) };
  }

  // check says under each text what it is read as, and whether the two make a range.
  function check() {
    const { start, end, at, until } = both();
    const say = (input, note, value, ms) => {
      const isBad = !value && input.value.trim() !== '';
      input.setCustomValidity(isBad ? 'This is not read as a time: write 14:05, yesterday 14:05, now-1h30m or a log’s own time.' : '');
      note.textContent = isBad ? 'not read as a time' : Number.isNaN(ms) ? '' : `${date(ms)}, ${clock(ms, ms % 1000 ? 'ms' : 's')}, ${offsetText(ms)}${value?.note ? `: ${value.note}` : ''}`;
    };
    say(from, $('range-from-note'), start, at);
    say(to, $('range-to-note'), end, until);
    if (at >= until) to.setCustomValidity('The end must be after the start.');
  }

  from.addEventListener('input', () => {
    const parts = twoOf(from.value);
    if (parts) [from.value, to.value] = parts;
    check();
  });
  to.addEventListener('input', check);
  $('range-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const { start, end } = both();
    pick(start.text ?? iso(start.ms), end.text ?? iso(end.ms));
  });
  $('utc').addEventListener('change', () => onzone($('utc').checked));
  $('arrival').addEventListener('change', () => onclock($('arrival').checked));

  return {
    show(start, end, isUTC, isArrival) {
      shown = { from: start, to: end };
      $('range-name').textContent = rangeName(start, end);
      button.title = isRelative(start) ? `from ${start} to ${end}` : `${start} – ${end}`;
      $('utc').checked = isUTC;
      $('arrival').checked = isArrival;
      $('range-zone').textContent = zone(Number.isNaN(resolve(start)) ? undefined : resolve(start));
      if (popover.matches(':popover-open')) {
        from.value = typed(start);
        to.value = typed(end);
        check();
      }
    },
  };
}

// wider returns a range about twice as wide; one that ends now goes on ending now.
export function wider(from, to, seen) {
  const end = resolve(to, now(), true);
  const start = resolve(from, now());
  const [a, b] = Number.isNaN(start + end) ? [seen?.from ?? now() - 3600e3, seen?.to ?? now()] : [start, end];
  const more = Math.max(b - a, 1000);
  if (to === 'now' || b + more / 2 >= now()) {
    const preset = presets.find(([ago]) => now() - resolve(ago, now()) > 1.5 * (now() - a));
    return preset ? [preset[0], 'now'] : [iso(a - more), 'now'];
  }
  return [iso(a - more / 2), iso(b + more / 2)];
}
