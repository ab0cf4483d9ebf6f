// What the page shows is in its address, and only there: a link or the back button brings it all back.

export const defaults = { q: '', from: 'now-1h', to: 'now', by: '', order: 'desc', live: '', id: '' };

export function read(address = location.search) {
  const given = new URLSearchParams(address);
  const state = { ...defaults };
  for (const name of Object.keys(defaults)) {
    if (given.get(name)) state[name] = given.get(name);
  }
  if (state.order !== 'asc') state.order = 'desc';
  return state;
}

// link writes a state, without what is as by default.
export function link(state) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== defaults[name]) given.set(name, value);
  }
  const text = given.toString().replaceAll('%3A', ':').replaceAll('%2F', '/'); // legible, and as good in a query
  return location.pathname + (text && `?${text}`);
}
