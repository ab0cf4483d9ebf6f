// How far a search has come. The service answers within a budget; the page goes on asking until all is searched, or the reader
// says stop. What was found until then is shown all the while.
import { now } from './api.js';
import { $ } from './dom.js';
import { clock, date, isDated } from './time.js';

const longest = 60; // s, the longest budget that the service takes
const mostInVain = 4; // answers that came no further, each with a longer budget: then it is for the reader to go on

// progressBar shows the parts of a search that are under way in #progress.
export function progressBar() {
  const parts = new Map(); // name → {reached, verb}
  const under = new Set(); // controllers of the requests under way
  let stopped = false;
  let goOn = [];

  function draw() {
    const open = [...parts.values()].filter(({ reached }) => !Number.isNaN(reached));
    $('progress').hidden = !open.length;
    if (!open.length) return;
    const { verb, reached } = open.reduce((slowest, part) => (part.reached > slowest.reached ? part : slowest));
    const day = isDated(reached, Date.now()) ? `${date(reached)}, ` : '';
    $('progress-text').textContent = `${reached > now() ? 'Nothing searched yet' : `${verb} ${day}${clock(reached)}`}${stopped ? '' : ', going on'}`; // a window's end may be ahead of now
    $('progress-stop').textContent = stopped ? 'Continue' : 'Stop';
  }

  $('progress-stop').addEventListener('click', () => {
    stopped = !stopped;
    if (stopped) for (const controller of under) controller.abort();
    else for (const resolve of goOn.splice(0)) resolve();
    draw();
  });

  return {
    // begin forgets the search before.
    begin() {
      parts.clear();
      stopped = false;
      for (const resolve of goOn.splice(0)) resolve();
      draw();
    },
    // drop forgets parts that are no longer wanted.
    drop(...names) {
      for (const name of names) parts.delete(name);
      draw();
    },
    // run calls step(budget, signal) until what it returns, {reached, complete}, is complete. verb says what reached means.
    async run(name, verb, signal, step) {
      parts.delete(name);
      draw();
      let seconds = 2;
      let inVain = 0;
      for (let last = NaN; ;) {
        if (stopped && parts.has(name)) await new Promise((resolve) => { goOn.push(resolve); });
        if (signal.aborted) return;
        const controller = new AbortController();
        const giveUp = () => controller.abort();
        signal.addEventListener('abort', giveUp);
        under.add(controller);
        let came;
        try {
          came = await step(`${seconds}s`, controller.signal);
        } catch (error) {
          if (signal.aborted) return;
          if (controller.signal.aborted) continue; // stopped: it is asked for again
          parts.delete(name);
          draw();
          throw error;
        } finally {
          under.delete(controller);
          signal.removeEventListener('abort', giveUp);
        }
        if (signal.aborted) return;
        if (came.complete) {
          parts.delete(name);
          draw();
          return;
        }
        inVain = came.reached === last ? inVain + 1 : 0;
        seconds = inVain ? Math.min(2 * seconds, longest) : 2;
        if (inVain >= mostInVain) {
          stopped = true;
          inVain = 0;
        }
        last = came.reached;
        parts.set(name, { verb, reached: came.reached });
        draw();
      }
    },
  };
}
