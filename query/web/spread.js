// The histogram of the numbers in a field: bars to be pointed at or walked along, and a click that narrows the search to one.
import { h, s } from './dom.js';
import { count } from './chart.js';

const height = 36; // of the drawing, which is stretched to the panel's width
const edge = (n) => (Number.isInteger(n) ? count(n) : String(n));

// spread draws bins as the service counts them: {from, to, count}, to excluded. onrange(bin) is told of a choice.
export function spread(path, bins, onrange) {
  const all = bins.reduce((sum, bin) => sum + bin.count, 0);
  const most = Math.max(...bins.map((bin) => bin.count));
  const largest = bins.findIndex((bin) => bin.count === most);
  const words = ({ from, to, count: n }) => `${edge(from)} to ${edge(to)}: ${count(n)} (${n && n < all / 100 ? '<1' : Math.round((100 * n) / all)}%)`;
  const bars = bins.map(({ count: n }, i) => {
    const tall = n && Math.max(1.5, (n / most) * height);
    return s('rect', { x: 10 * i + 0.5, width: 9, y: height - tall, height: tall });
  });
  const note = h('p', { class: 'quietly', role: 'status' });
  const box = h('div', {
    class: 'spread', tabindex: 0, role: 'group', 'aria-label': `Histogram of ${path}. Arrow keys walk along the bars, Enter asks for the numbers of one.`,
  }, s('svg', { viewBox: `0 0 ${10 * bins.length} ${height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, bars));
  let at = -1;

  function point(i) {
    at = i;
    bars.forEach((bar, n) => bar.classList.toggle('at', n === i));
    note.textContent = i < 0 ? `mostly ${words(bins[largest])}` : words(bins[i]);
  }

  const under = (event) => {
    const { left, width } = box.getBoundingClientRect();
    return Math.max(0, Math.min(bins.length - 1, Math.floor(((event.clientX - left) / width) * bins.length)));
  };
  box.addEventListener('pointermove', (event) => point(under(event)));
  box.addEventListener('pointerleave', (event) => event.pointerType !== 'touch' && point(-1));
  box.addEventListener('blur', () => point(-1));
  box.addEventListener('click', (event) => {
    const i = under(event);
    if (event.pointerType === 'touch' && i !== at) point(i); // a tap tells the numbers, another one takes them
    else onrange(bins[i]);
  });
  box.addEventListener('keydown', (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) point(at < 0 ? largest : Math.max(0, Math.min(bins.length - 1, at + move)));
    else if (event.key === 'Enter' && at >= 0) onrange(bins[at]);
    else return;
    event.preventDefault();
  });
  point(-1);
  return [box, note];
}
