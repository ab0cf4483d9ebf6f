// Following the tail: what arrives is gathered and handed over in batches; what is too much is counted, not kept.
import * as api from './api.js';
import { parse } from './json.js';

export const most = 1000; // rows that are kept, shown or waiting
const every = 150; // ms between two batches: the eye needs no more, and the layout none at all in between
const longestPause = 10_000; // ms between two tries to connect
const patience = 2000; // ms until the page searches, though it does not follow yet

// follower calls onlogs(logs, oldest first) and onchange() whenever its figures changed; onfail(Failure) ends it. It calls onjoin()
// when it follows without a place to go on from: what is there already must be searched for then, not before, or what comes between
// the two would be missed. What the tail gives is held until release(), which is to be called when that is shown. It also calls
// onjoin() if it can't follow at first, or not soon.
export function follower({ onlogs, onchange, onjoin, onfail }) {
  let abort = null;
  let waiting = [];
  let timer = null;
  let lastId = '';
  let held = false;
  let late = null; // calls onjoin() if it takes long to follow
  let arrivals = []; // times of the last seconds
  const figures = { connected: false, paused: false, missed: 0, gap: false, waiting: 0, rate: 0 };

  function take(log) {
    waiting.push(log);
    if (waiting.length > most) figures.missed += waiting.splice(0, waiting.length - most).length;
    timer ??= setTimeout(flush, every);
  }

  function flush() {
    timer = null;
    figures.waiting = waiting.length;
    if (!figures.paused && !held && waiting.length) {
      onlogs(waiting);
      waiting = [];
      figures.waiting = 0;
    }
    onchange();
  }

  function join() {
    clearTimeout(late);
    held = true;
    onjoin();
  }

  async function follow(q, signal) {
    late = setTimeout(join, patience);
    let isFirst = true;
    for (let pause = 500; !signal.aborted; pause = Math.min(2 * pause, longestPause)) {
      try {
        for await (const event of api.tail({ q }, lastId, { signal })) {
          if (event.id) lastId = event.id;
          if (event.type === 'open') {
            figures.connected = true;
            isFirst = false;
            pause = 500;
            onchange();
            if (!lastId) join();
          } else if (event.type === 'message') {
            arrivals.push(Date.now());
            take(parse(event.data));
          } else if (event.type === 'missed') {
            const { missed } = parse(event.data);
            if (missed === null) figures.gap = true; // how many, nobody knows
            else figures.missed += missed;
            onchange();
          }
        }
      } catch (error) {
        if (signal.aborted) return;
        if (isFirst) join();
        if (error.status === 501 || (error.status >= 400 && error.status < 500 && error.status !== 429)) return onfail(error);
      }
      isFirst = false;
      figures.connected = false;
      onchange();
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  const clock = () => {
    const since = Date.now() - 5000;
    arrivals = arrivals.filter((at) => at > since);
    figures.rate = arrivals.length / 5;
    onchange();
  };
  let ticking = null;

  return {
    figures,
    start(q) {
      this.stop();
      abort = new AbortController();
      Object.assign(figures, { connected: false, paused: false, missed: 0, gap: false, waiting: 0, rate: 0 });
      ticking = setInterval(clock, 1000);
      follow(q, abort.signal);
    },
    stop() {
      abort?.abort();
      abort = null;
      clearInterval(ticking);
      clearTimeout(timer);
      clearTimeout(late);
      timer = null;
      waiting = [];
      arrivals = [];
      lastId = '';
      held = false;
    },
    running: () => abort !== null,
    release() {
      if (!held) return;
      held = false;
      flush();
    },
    pause(on) {
      figures.paused = on;
      flush();
    },
  };
}
