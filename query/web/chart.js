// The histogram: stacked bars that can be read off, walked along and dragged over.
import { $, h, s, shorten } from './dom.js';
import { clock, date, span, ticks } from './time.js';
import { known, order } from './levels.js';

const height = 116;
const margin = { top: 10, right: 4, bottom: 20, left: 44 };
const shown = 80; // characters of a value: the rest is in its title
export const palette = 10; // colours in style.css, as many as the service tells groups apart

export const count = (n) => n.toLocaleString('en-US');
export const short = new Intl.NumberFormat('en-US', { notation: 'compact', maximumFractionDigits: 1 });

// fold makes one group of the spellings of a level: error, ERROR and 50.
function fold(groups) {
  const levels = new Map();
  return groups.map((group) => {
    group.level = group.other || group.missing ? '' : known(group.name);
    group.names = [group.name];
    return group;
  }).sort((a, b) => b.total - a.total).filter((group) => {
    const first = group.level && levels.get(group.level);
    if (!first) {
      if (group.level) levels.set(group.level, group);
      return true;
    }
    first.names.push(group.name);
    first.total += group.total;
    group.into = first;
    return false;
  });
}

// rank sorts groups: levels by how bad, then others by size, what has no group and what is left over last.
function rank(groups) {
  const place = (group) => (group.missing ? 1000 : group.other ? 999 : group.level ? order.indexOf(group.level) : 100);
  return groups.sort((a, b) => place(a) - place(b) || b.total - a.total || (a.name < b.name ? -1 : 1));
}

// colours gives each group a class: that of its level, or the next of the palette.
function colours(groups) {
  let next = 0;
  for (const group of groups) {
    group.class = group.missing ? 'none' : group.other ? 'other' : group.level ? `level-${group.level}` : `series-${next++ % palette}`;
  }
  return groups;
}

// levels returns the round numbers that the grid marks, about as many as asked for.
export function levels(most, wanted = 2.5) {
  const size = 10 ** Math.floor(Math.log10(most / wanted));
  const step = [1, 2, 2.5, 5, 10].find((n) => n * size >= most / wanted) * size;
  return Array.from({ length: Math.floor(most / step) }, (_, i) => (i + 1) * step);
}

// name shows a group: a value, or in other letters what is none.
const name = (group) => h(group.other || group.missing ? 'em' : 'span', {}, group.name === '' ? '""' : shorten(group.name, shown));

// chart draws into the figure. onzoom(from, to) is told of a drag, onpick(group, exclude) of a click on the legend, which
// ispickable(group) allows.
export function chart({ onzoom, onpick, ispickable }) {
  const figure = $('chart');
  const tip = $('tip');
  const legend = $('legend');
  let data = null;
  let drawing = null;
  let at = -1; // the bucket that is pointed at
  let drag = null;

  const x = (ms) => margin.left + ((ms - data.from) / (data.to - data.from)) * (drawing.width - margin.left - margin.right);
  const timeAt = (pixel) => {
    const part = (pixel - margin.left) / (drawing.width - margin.left - margin.right);
    return data.from + Math.min(1, Math.max(0, part)) * (data.to - data.from);
  };

  function draw() {
    if (!data?.buckets.length) return;
    const width = figure.clientWidth;
    if (!width) return;
    drawing = { width };
    const most = Math.max(1, ...data.buckets.map((bucket) => bucket.count));
    const y = (n) => (n / most) * (height - margin.top - margin.bottom);
    const floor = height - margin.bottom;
    const marks = ticks(data.from, data.to, Math.max(2, Math.floor(width / 110)));
    const bars = data.buckets.map((bucket) => {
      const left = x(Math.max(bucket.start, data.from));
      const right = x(Math.min(bucket.end, data.to));
      let top = floor;
      return data.groups.map((group) => {
        const n = bucket.counts.get(group) ?? 0;
        if (!n) return null;
        const tall = Math.max(y(n), 1.5); // one error among thousands must be seen
        top -= tall;
        return s('rect', {
          class: `fill-${group.class}`, x: left + 0.5, y: Math.max(top, 0), width: Math.max(right - left - 1, 0.8), height: tall,
        });
      });
    });
    const unreached = data.complete ? 0 : Math.max(0, x(Math.min(data.reached, data.to)) - margin.left);
    drawing.shade = s('rect', { class: 'shade', y: margin.top - 4, height: floor - margin.top + 4, width: 0 });
    drawing.hover = s('rect', { class: 'hover', y: margin.top - 4, height: floor - margin.top + 4, width: 0 });
    const graph = s('svg', { width, height, viewBox: `0 0 ${width} ${height}`, 'aria-hidden': 'true' },
      s('defs', {}, s('pattern', { id: 'hatch', width: 7, height: 7, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, s('path', { class: 'hatching', d: 'M0 0v7' }))),
      levels(most).filter((n) => n >= 1).map((n) => s('g', {},
        s('line', { class: 'grid', x1: margin.left, x2: width - margin.right, y1: floor - y(n), y2: floor - y(n) }),
        s('text', { class: 'tick', x: margin.left - 7, y: floor - y(n) + 4, 'text-anchor': 'end' }, short.format(n)))),
      drawing.hover, unreached > 0 && s('rect', {
        class: 'unreached', fill: 'url(#hatch)', x: margin.left, y: margin.top - 4, width: unreached, height: floor - margin.top + 4,
      }), bars, drawing.shade,
      s('line', { class: 'axis', x1: margin.left, x2: width - margin.right, y1: floor + 0.5, y2: floor + 0.5 }),
      marks.map(([ms, label]) => s('text', {
        class: 'tick', x: Math.min(x(ms), width), y: height - 4, 'text-anchor': x(ms) > width - 30 ? 'end' : 'middle',
      }, label)));
    figure.querySelector('svg')?.remove();
    figure.prepend(graph);
    point(-1);
  }

  // point shows a bucket: the tooltip, which is also what a screen reader hears.
  function point(index) {
    at = index;
    const bucket = data?.buckets[index];
    tip.hidden = !bucket;
    if (!bucket) return drawing?.hover.setAttribute('width', 0);
    const [left, right] = [x(Math.max(bucket.start, data.from)), x(Math.min(bucket.end, data.to))];
    drawing.hover.setAttribute('x', left);
    drawing.hover.setAttribute('width', right - left);
    tip.replaceChildren(
      h('strong', {}, span(bucket.start, bucket.end)),
      bucket.state && h('p', {}, bucket.state === 'partial' ? 'Counted in part.' : 'Not counted yet.'),
      h('dl', {}, data.groups.filter((group) => bucket.counts.has(group)).map((group) => [
        h('dt', {}, h('i', { class: `dot fill-${group.class}` }), name(group)), h('dd', {}, count(bucket.counts.get(group))),
      ]), bucket.state !== 'unreached' && (data.groups.length > 1 || !bucket.count) ? [h('dt', {}, 'all'), h('dd', {}, count(bucket.count))] : null));
    const beside = right + 10 + tip.offsetWidth > drawing.width ? left - tip.offsetWidth - 10 : right + 10;
    tip.style.left = `${Math.max(0, beside)}px`;
  }

  function shade(a, b) {
    drawing.shade.setAttribute('x', Math.min(a, b));
    drawing.shade.setAttribute('width', Math.abs(b - a));
  }

  const inside = (event) => event.clientX - figure.getBoundingClientRect().left;
  const bucketAt = (pixel) => Math.max(0, data.buckets.findLastIndex((bucket) => bucket.start <= timeAt(pixel)));

  figure.addEventListener('pointerdown', (event) => {
    if (event.button !== 0 || !drawing || !data?.buckets.length) return;
    drag = inside(event);
    figure.setPointerCapture(event.pointerId);
  });
  figure.addEventListener('pointermove', (event) => {
    if (!drawing || !data?.buckets.length) return;
    point(bucketAt(inside(event)));
    if (drag !== null) shade(drag, inside(event));
  });
  figure.addEventListener('pointerup', (event) => {
    if (drag === null) return;
    const [a, b] = [drag, inside(event)].sort((one, other) => one - other);
    drag = null;
    shade(0, 0);
    if (b - a > 4) onzoom(timeAt(a), timeAt(b));
    else if (event.pointerType === 'mouse') zoomTo(bucketAt(a)); // a tap only shows the numbers
  });
  const leave = () => {
    drag = null;
    if (drawing) shade(0, 0);
    point(-1);
  };
  figure.addEventListener('pointercancel', leave);
  figure.addEventListener('pointerleave', () => drag === null && point(-1));
  figure.addEventListener('blur', leave);
  figure.addEventListener('keydown', (event) => {
    if (!data?.buckets.length) return;
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) point(Math.min(data.buckets.length - 1, Math.max(0, at < 0 ? data.buckets.length - 1 : at + move)));
    else if (event.key === 'Enter' && at >= 0) zoomTo(at);
    else return;
    event.preventDefault();
  });
  const zoomTo = (index) => data.step > 1 && onzoom(data.buckets[index].start, data.buckets[index].end);
  new ResizeObserver(draw).observe(figure);

  function list(field) {
    legend.replaceChildren(...data.groups.map((group) => {
      const text = [h('i', { class: `dot fill-${group.class}` }), name(group), h('small', {}, short.format(group.total))];
      const names = group.names.length > 1 ? group.names.join(', ') : group.name.length > shown ? group.name : '';
      const title = [names, count(group.total)].filter(Boolean).join('\n');
      return h('li', {}, field && ispickable(group)
        ? h('button', {
          type: 'button', title: `${title} · click: only these · Shift-click: without these`,
          onclick: (event) => onpick(group, event.shiftKey),
        }, text) : h('span', { title }, text));
    }));
  }

  return {
    // show takes what api.histogram returns.
    show(histogram, field) {
      const groups = histogram.groups.map((group) => ({ ...group }));
      const whole = new Map(histogram.groups.map((group, i) => [group, groups[i]]));
      const folded = fold([...groups]);
      data = {
        ...histogram,
        groups: colours(rank(folded)),
        buckets: histogram.buckets.map((bucket) => {
          const counts = new Map();
          for (const [group, n] of bucket.counts) {
            const mine = whole.get(group).into ?? whole.get(group);
            counts.set(mine, (counts.get(mine) ?? 0) + n);
          }
          return { ...bucket, counts };
        }),
      };
      figure.classList.remove('failed');
      $('chart-error').hidden = true;
      list(field);
      draw();
      const peak = data.buckets.reduce((best, bucket) => (bucket.count > (best?.count ?? 0) ? bucket : best), null);
      const most = peak ? `, most of them at ${date(peak.start)} ${clock(peak.start)}` : '';
      figure.setAttribute('aria-label', `Histogram of ${count(data.total)} logs${most}. Arrow keys walk along the bars, Enter zooms in.`);
    },
    fail(message) {
      figure.classList.add('failed');
      $('chart-error').hidden = false;
      $('chart-error').textContent = message;
      legend.replaceChildren();
    },
    redraw: draw,
    range: () => data && { from: data.from, to: data.to },
    // end returns the end of the bars with records ahead of a time, or that time.
    end: (ms) => data?.buckets.findLast((bucket) => bucket.count && bucket.start >= ms)?.end ?? ms,
  };
}
